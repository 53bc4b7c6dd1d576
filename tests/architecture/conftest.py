import secrets
from collections.abc import AsyncIterator

import pytest

from tests.kit import Server
from tests.kit.servers import drop_database, execute


@pytest.fixture
async def empty_database(server: Server) -> AsyncIterator[str]:
    """The URL of a database without tables."""
    name = f"test_{secrets.token_hex(8)}"
    await execute(server.admin_url, f'CREATE DATABASE "{name}"')
    yield server.url(name)
    await drop_database(server.admin_url, name)
