"""An import beside other requests that change the same items counts what it does to them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response
from sqlalchemy import text

from features.items.handlers import create_item, delete_item, update_item
from features.items.handlers.merging import KEY_TAKEN_MEANWHILE
from features.items.schemas import ItemCreate, ItemUpdate
from features.items.tests.test_import import NO_ROWS, json_lines, report, row, send
from features.items.tests.test_import_ids import create, items
from shared.db import WriteSession, database_of
from tests.kit import eventually, within

pytestmark = pytest.mark.one_server  # the coordinator does not see who waits on a worker

COUNT_WAITING = text("""
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event = 'transactionid'
""")


@asynccontextmanager
async def uncommitted(
    app: FastAPI, client: AsyncClient, *rows: dict[str, Any]
) -> AsyncIterator[tuple[WriteSession, UUID, "asyncio.Task[Response]"]]:
    """Opens a transaction of the client's account; after the block an import of the rows begins.
    Commits once the import waits for the transaction."""
    owner_id = UUID((await client.get("/users/me")).json()["id"])
    database = database_of(app)

    async def is_waiting() -> bool:
        return bool(await database.read().fetch_value(COUNT_WAITING))

    begin = asyncio.Event()

    async def import_() -> Response:
        await begin.wait()
        return await send(client, json_lines(*rows))

    async with asyncio.TaskGroup() as group, database.transaction() as session:
        importing = group.create_task(import_())
        yield session, owner_id, importing
        begin.set()
        await eventually(is_waiting, "the import that waits", 30)


async def test_items_count_as_they_are_when_the_transaction_before_is_committed(
    app: FastAPI, client: AsyncClient
) -> None:
    await report(send(client, json_lines(row("same", 1), row("other", 2), row("deleted", 1))))
    ids = {item["external_id"]: UUID(item["id"]) for item in (await items(client)).values()}
    file = [row(key, 2) for key in ids]
    async with uncommitted(app, client, *file) as (session, owner, importing):
        await update_item(session, owner, ids["same"], ItemUpdate(price=2))
        await update_item(session, owner, ids["other"], ItemUpdate(price=3))
        await delete_item(session, owner, ids["deleted"])
    assert await report(importing) == NO_ROWS | {"created": 1, "updated": 1, "unchanged": 1}
    assert [item["price"] for item in (await items(client)).values()] == [2, 2, 2]


async def test_a_row_whose_key_another_request_takes_meanwhile_counts_as_updated(
    app: FastAPI, client: AsyncClient
) -> None:
    file = [row("K", 2), row("K", 3), row("L", 1)]
    async with uncommitted(app, client, *file) as (session, owner, importing):
        await create_item(session, owner, ItemCreate(title="Item K", price=1, external_id="K"))
    assert await report(importing) == NO_ROWS | {"created": 1, "updated": 2}
    found = (await items(client)).values()
    assert sorted((item["external_id"], item["price"]) for item in found) == [("K", 3), ("L", 1)]


async def test_an_import_is_refused_if_another_request_takes_a_key_that_it_gives_to_an_item(
    app: FastAPI, client: AsyncClient
) -> None:
    keyless = await create(client, "No key")
    file = [row("L"), row("K", id=keyless["id"])]
    async with uncommitted(app, client, *file) as (session, owner, importing):
        await create_item(session, owner, ItemCreate(title="Item K", price=1, external_id="K"))
    refused = await importing
    assert (refused.status_code, refused.json()["detail"]) == (409, KEY_TAKEN_MEANWHILE)
    assert {item["external_id"] for item in (await items(client)).values()} == {None, "K"}
    again = await report(send(client, json_lines(*file)))
    assert (again["created"], again["rejected"]) == (1, 1)


async def test_a_dry_run_waits_for_no_change(app: FastAPI, client: AsyncClient) -> None:
    keyed, keyless = [await create(client, "Mug", key) for key in ("K", None)]
    file = json_lines(row("K", 2), row("L", id=keyless["id"]))
    owner = UUID((await client.get("/users/me")).json()["id"])
    async with database_of(app).transaction() as session:
        for item in (keyed, keyless):
            await update_item(session, owner, UUID(item["id"]), ItemUpdate(price=3))
        async with within(30, "the report of the dry run"):
            counted = await report(send(client, file, dry_run=True))
    assert counted == NO_ROWS | {"updated": 2}
