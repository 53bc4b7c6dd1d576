"""Fixtures of the search tests."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.items import ItemCreate, ItemPublic, create_item
from features.search.tasks import embedding_task, statistics_task
from shared.db import database_of
from shared.db.sessions import WriteSession
from tests.kit import run_until_idle

Index = Callable[[], Awaitable[None]]

Write = Callable[[], AbstractAsyncContextManager[tuple[WriteSession, UUID]]]


@pytest.fixture
async def write(app: FastAPI, client: AsyncClient) -> Write:
    """Opens a transaction like a request's, which can stay open: `async with write() as (session,
    owner_id):`."""
    owner_id = UUID((await client.get("/users/me")).json()["id"])

    @asynccontextmanager
    async def transaction() -> AsyncIterator[tuple[WriteSession, UUID]]:
        async with database_of(app).transaction() as session:
            yield session, owner_id

    return transaction


async def add_item(session: WriteSession, owner_id: UUID, title: str) -> ItemPublic:
    return await create_item(session, owner_id, ItemCreate(title=title, price=Decimal(1)))


@pytest.fixture
def index(app: FastAPI) -> Index:
    """Runs all background work of search that is due: `await index()`."""

    async def drain_all() -> None:
        while await run_until_idle(app, statistics_task) + await run_until_idle(
            app, embedding_task
        ):
            pass

    return drain_all
