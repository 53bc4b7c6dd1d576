"""An account that is read, changed and deleted at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response

from shared.database import database_of

WAITING = """
SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@asynccontextmanager
async def deleting_all(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """All accounts are deleted, and that is committed when the block ends."""
    holder = await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("DELETE FROM users")
        yield holder
    await holder.close()


async def until_somebody_waits(database_url: str) -> None:
    observer = await asyncpg.connect(database_url)
    while not await observer.fetch(WAITING):  # noqa: ASYNC110  # PostgreSQL sends no event
        await asyncio.sleep(0.01)
    await observer.close()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/users/me", {"name": "Ada"}),
        ("DELETE", "/auth/sessions", None),
        ("POST", "/users/me/api-keys", {"name": "nightly import", "scopes": ["items:read"]}),
    ],
)
async def test_whoever_is_deleted_meanwhile_is_not_found(
    client: AsyncClient, database_url: str, method: str, path: str, body: dict[str, object] | None
) -> None:
    async with deleting_all(database_url):
        answer: Awaitable[Response] = asyncio.create_task(client.request(method, path, json=body))
        await until_somebody_waits(database_url)
    response = await answer
    assert response.status_code == 401, response.text
    assert response.json()["detail"] == "User not found"


async def test_an_account_is_read_while_all_that_write_are_busy(
    app: FastAPI, client: AsyncClient
) -> None:
    async with AsyncExitStack() as held:
        for _ in range(app.state.settings.database_pool_size):
            await held.enter_async_context(database_of(app).write.connect())
        response = await client.get("/users/me")
    assert response.status_code == 200, response.text
    assert response.json()["email"]
