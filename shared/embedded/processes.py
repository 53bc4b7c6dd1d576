"""The processes of a server: made ready, started, watched, stopped."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.embedded.home import EmbeddedPostgresError, Home, environment, run_program

START_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.02
# `cat` ends when our end of the pipe closes, and the kernel closes it even after SIGKILL.
STOP_AFTER_US = 'cat >/dev/null; kill -INT "$0" 2>/dev/null'


def running_port(home: Home) -> int | None:
    """The port of the server that already runs on this data, waiting for one that starts."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while (pid := _live_postmaster(home)) is not None:
        if port := ready_port(home, pid):
            return port
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(f"PostgreSQL ({pid}) is not ready; see {home.log}")
        time.sleep(POLL_SECONDS)
    return None


def _pid_file(home: Home) -> list[str]:
    with suppress(OSError):
        return (home.data / "postmaster.pid").read_text().splitlines()
    return []


def _live_postmaster(home: Home) -> int | None:
    """The pid of a running postgres on this data: no stale file, reused pid or zombie."""
    try:
        pid = int(_pid_file(home)[0])
        os.kill(pid, 0)
    except PermissionError:
        pass  # it runs, as another account
    except (IndexError, ValueError, ProcessLookupError):
        return None
    process = Path(f"/proc/{pid}")
    if process.exists():
        with suppress(OSError):
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
            program = (process / "cmdline").read_bytes().split(b"\0")[0]
            return pid if state != "Z" and b"postgres" in program else None
    return None if Path("/proc/self").exists() else pid


def ready_port(home: Home, pid: int) -> int | None:
    lines = _pid_file(home)  # pid, folder, start, port, …, and last the status
    ready = len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
    return int(lines[3]) if ready else None


def initialise(home: Home, *, durable: bool) -> None:
    """Makes the data folder; one that is there must be of the same major version."""
    version_file = home.data / "PG_VERSION"
    if version_file.exists():
        found, wanted = version_file.read_text().strip(), _major_version(home)
        if found != wanted:
            raise EmbeddedPostgresError(
                f"{home.data} belongs to PostgreSQL {found}, but {wanted} is installed:"
                " dump and restore it, or remove it"
            )
        return
    password = home.folder / "password"
    if not password.exists() or not password.read_text():  # empty: killed before it was written
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24))
    unfinished = Path(tempfile.mkdtemp(dir=home.folder, prefix="init-"))
    password_file = unfinished.with_suffix(".password")
    try:
        password_file.touch(mode=0o600)
        password_file.write_text(password.read_text())
        for path in (unfinished, password_file):
            if home.account:
                os.chown(path, home.account["user"], home.account["group"])
        options = [f"--pgdata={unfinished}", f"--pwfile={password_file}", "--username=postgres"]
        options += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-instructions"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        run_program(home, "initdb", *options, *([] if durable else ["--no-sync"]))
        unfinished.rename(home.data)  # a killed initdb leaves nothing half made
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file.unlink(missing_ok=True)


def _major_version(home: Home) -> str:
    return run_program(home, "postgres", "--version").split()[-1].split(".")[0]


@dataclass(frozen=True)
class Process:
    """A postgres that we started, and the watcher that stops it if we cannot."""

    postgres: subprocess.Popen[bytes]
    watcher: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.postgres.send_signal(signal.SIGINT)  # fast shutdown: no recovery at the next start
        try:
            self.postgres.wait(30)
        except subprocess.TimeoutExpired:
            self.postgres.send_signal(signal.SIGQUIT)
            self.postgres.wait(10)
        assert self.watcher.stdin
        self.watcher.kill()
        self.watcher.stdin.close()
        self.watcher.wait()


def start(home: Home, settings: Mapping[str, str]) -> tuple[Process, int]:
    """Starts a server on data that nobody runs on: that is for the caller to know."""
    _end_orphans(home)
    for _ in range(5):
        port = _free_port()
        process, log = _spawn(home, {**settings, "port": str(port)})
        if _wait_until_ready(home, process.postgres):
            return process, port
        process.stop()
        if "Address already in use" not in log():
            raise EmbeddedPostgresError(f"PostgreSQL did not start: {_last_fatal(log())}")
    raise EmbeddedPostgresError("PostgreSQL found no free port")


def _end_orphans(home: Home) -> None:
    """Kills the children of a killed server: those that compute see only later that it has gone,
    and until then no other can start."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while (orphans := _children(home)) and time.monotonic() < deadline:
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _children(home: Home) -> list[int]:
    """The children of any server on this data: known by their titles, and by where they work."""
    data = home.data.resolve()

    def is_child(process: Path) -> bool:
        with suppress(OSError):  # it has ended, or is none of our business
            title = (process / "cmdline").read_bytes()
            return title.startswith(b"postgres: ") and (process / "cwd").readlink() == data
        return False

    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if is_child(process)]


def _spawn(home: Home, settings: Mapping[str, str]) -> tuple[Process, Callable[[], str]]:
    """Starts postgres in a session of its own, so that Ctrl-C reaches us alone."""
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", **settings}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    # Nobody runs on this data (that was checked): the file of a killed server, whose pid may
    # be somebody else's by now, must not stop the new one.
    (home.data / "postmaster.pid").unlink(missing_ok=True)
    with home.log.open("ab") as log_file:
        start = log_file.tell()
        postgres = subprocess.Popen(  # noqa: S603
            [home.binaries / "postgres", "-D", home.data, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            cwd="/",
            env=environment(),
            start_new_session=True,
            **home.account,
        )
    watcher = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", STOP_AFTER_US, str(postgres.pid)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )

    def log() -> str:
        return home.log.read_bytes()[start:].decode(errors="replace")

    return Process(postgres, watcher), log


def _wait_until_ready(home: Home, postgres: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while postgres.poll() is None and time.monotonic() < deadline:
        if ready_port(home, postgres.pid):
            return True
        time.sleep(POLL_SECONDS)
    return False


def _last_fatal(log: str) -> str:
    lines = [line for line in log.splitlines() if "FATAL" in line or "PANIC" in line]
    return lines[-1] if lines else (log.strip().splitlines() or ["no message"])[-1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
