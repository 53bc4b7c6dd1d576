"""Creates the data folder of a server, and starts its processes."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from app.embedded.home import EmbeddedPostgresError, Home, environment, run_program
from app.embedded.watcher import POLL_SECONDS, end, postmaster

START_TIMEOUT_SECONDS = 60.0


def running_port(home: Home) -> int | None:
    """Returns the port of the server that runs on this data, or None; waits for one that starts.

    Raises:
        EmbeddedPostgresError: the server is not ready in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while (pid := postmaster(home.data)) is not None:
        if port := ready_port(home, pid):
            return port
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(f"PostgreSQL ({pid}) is not ready; see {home.log}")
        time.sleep(POLL_SECONDS)
    return None


def ready_port(home: Home, pid: int) -> int | None:
    with suppress(OSError):
        # the lines are pid, folder, start time, port, …, and last the status
        lines = (home.data / "postmaster.pid").read_text().splitlines()
        if len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready":
            return int(lines[3])
    return None


def initialise(home: Home, *, durable: bool) -> None:
    """Creates the data folder, unless it exists.

    Raises:
        EmbeddedPostgresError: it exists, and is of another major version.
    """
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
    if (
        not password.exists() or not password.read_text()
    ):  # empty if we were killed before writing it
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
        # More iterations protect a weak password, and cost each new connection 2 ms of CPU.
        options += ["--set=scram_iterations=1"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        run_program(home, "initdb", *options, *([] if durable else ["--no-sync"]))
        unfinished.rename(home.data)  # so a killed initdb leaves no incomplete folder
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file.unlink(missing_ok=True)


def _major_version(home: Home) -> str:
    return run_program(home, "postgres", "--version").split()[-1].split(".")[0]


def start(home: Home, settings: Mapping[str, str]) -> int:
    """Starts a server, and returns its port. The caller has checked that none runs on this data."""
    end(home.data)  # children that a killed server may have left
    for _ in range(5):
        port = _free_port()
        postgres, log = _spawn(home, {**settings, "port": str(port)})
        if _wait_until_ready(home, postgres):
            return port
        end(home.data)
        if "Address already in use" not in log():
            raise EmbeddedPostgresError(f"PostgreSQL did not start: {_last_fatal(log())}")
    raise EmbeddedPostgresError("PostgreSQL found no free port")


def _spawn(
    home: Home, settings: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], Callable[[], str]]:
    """Starts postgres in a new session, so that Ctrl-C does not reach it.

    Returns the process, and a function that reads its log.
    """
    options = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "log_error_verbosity": "terse",  # the details have the values of rows, such as addresses
        **settings,
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    # No server runs on this data (the caller has checked): remove the file of a killed server. Its
    # pid may belong to another process by now, and would keep the new server from starting.
    (home.data / "postmaster.pid").unlink(missing_ok=True)
    home.log.touch(0o600)
    home.log.chmod(0o600)  # of an earlier version too
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
    # Reaps the process whenever it ends, so that it does not remain as a zombie.
    threading.Thread(target=postgres.wait, daemon=True).start()

    def log() -> str:
        return home.log.read_bytes()[start:].decode(errors="replace")

    return postgres, log


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
