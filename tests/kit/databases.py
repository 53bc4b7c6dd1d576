"""A database for each test: a clone of a migrated template, so that commits, races and
notifications are real.

The server is the one at `APP_TEST_DATABASE_URL`; without that variable, a container if a Docker
daemon answers; otherwise the embedded PostgreSQL.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
import pytest_asyncio

from tests.kit.citus import DROP_ATTEMPTS
from tests.kit.servers import Server

SERVER = pytest.StashKey[Server]()

Execute = Callable[[str], Awaitable[None]]


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    """The PostgreSQL server under test."""
    return pytestconfig.stash[SERVER]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def administer(server: Server) -> AsyncIterator[Execute]:
    """Returns a function that runs a statement on the server, or on each node of a cluster. It
    keeps its connections, as another for each test takes as long as half a clone."""
    connections = {url: await asyncpg.connect(url) for url in server.nodes}

    async def run(statement: str) -> None:
        for url in server.nodes:
            if connections[url].is_closed():  # a test may end all connections
                connections[url] = await asyncpg.connect(url)
            await connections[url].execute(statement)

    yield run
    for connection in connections.values():
        await connection.close()


@pytest_asyncio.fixture(loop_scope="session")
async def database_url(server: Server, administer: Execute) -> AsyncIterator[str]:
    """The URL of this test's own database: migrated, empty, and dropped after the test."""
    name = f"test_{secrets.token_hex(8)}"
    await administer(f'CREATE DATABASE "{name}" TEMPLATE "{server.template}" STRATEGY file_copy')
    yield server.url(name)
    for attempt in range(DROP_ATTEMPTS):
        try:
            await administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            break
        except asyncpg.ObjectInUseError:  # Citus connects again at any moment, to find deadlocks
            if attempt == DROP_ATTEMPTS - 1:
                raise
