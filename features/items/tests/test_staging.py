"""The rows of an import wait in a table until all have come, and nothing is held meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response
from sqlalchemy import text

from features.items.handlers import bulk_import, staging
from features.items.tasks import delete_abandoned_imports
from features.items.tests.test_import import (
    CSV,
    NO_ROWS,
    json_lines,
    report,
    row,
    send,
    titles,
)
from shared.db import database_of
from shared.db.tables import first_uuid7, uuid7
from tests.kit import eventually, within

COUNT_STAGED = text("SELECT count(*) FROM staged_items")
COUNT_TRANSACTIONS = text("""
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
AND pid <> pg_backend_pid() AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)
AND state <> 'active'
""")


async def count(app: FastAPI, statement: Any) -> int:
    found: int = await database_of(app).read().fetch_value(statement)
    return found


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_import, "STAGED_ROWS", 2)


@asynccontextmanager
async def upload_under_way(
    app: FastAPI, client: AsyncClient, **options: Any
) -> AsyncIterator[tuple["asyncio.Task[Response]", Callable[[], None]]]:
    """Sends rows 1 to 3, of which two are staged, and row 4 once the second value is called."""
    gate = asyncio.Event()

    async def held() -> AsyncIterator[bytes]:
        for key in (1, 2, 3):
            yield json_lines(row(key))
        await gate.wait()
        yield json_lines(row(4))

    async def is_staged() -> bool:
        return await count(app, COUNT_STAGED) >= 2

    importing = asyncio.create_task(send(client, held(), **options))
    await eventually(is_staged, "the first rows in the staging table", 30)
    yield importing, gate.set
    gate.set()
    async with within(30, "the end of the import"):
        await asyncio.wait([importing])


async def test_no_transaction_is_open_while_an_upload_is_slow(
    app: FastAPI, client: AsyncClient
) -> None:
    async with upload_under_way(app, client) as (importing, go_on):

        async def is_quiet() -> bool:
            return await count(app, COUNT_TRANSACTIONS) == 0

        await eventually(is_quiet, "the end of each transaction", 30)
        assert database_of(app).pool_usage()["write"][0] == 0
        assert await titles(client) == []
        go_on()
        assert await report(importing) == NO_ROWS | {"created": 4}
    assert await count(app, COUNT_STAGED) == 0


@pytest.mark.parametrize("dry_run", [True, False])
async def test_nothing_stays_in_the_staging_table(
    app: FastAPI, client: AsyncClient, dry_run: bool
) -> None:
    good = b"title,price\n" + b"Mug,1\n" * 5
    assert await report(send(client, good, CSV, dry_run=dry_run)) == NO_ROWS | {"created": 5}
    assert await count(app, COUNT_STAGED) == 0
    assert (await send(client, good + b'"open,1\nMug,1\n', CSV)).status_code == 422
    assert await count(app, COUNT_STAGED) == 0


async def test_rows_that_the_database_has_lost_fail_the_import(
    app: FastAPI, client: AsyncClient
) -> None:
    async with upload_under_way(app, client) as (importing, go_on):
        async with database_of(app).direct() as connection:
            await connection.execute("TRUNCATE staged_items")  # as PostgreSQL does after a crash
        go_on()
        answer = await importing
    assert answer.status_code == 503
    assert "please send it again" in answer.json()["detail"]
    assert await titles(client) == []


async def test_an_import_whose_session_has_ended_meanwhile_changes_nothing(
    app: FastAPI, client: AsyncClient
) -> None:
    refused = dict(client.headers)
    async with upload_under_way(app, client) as (importing, go_on):
        assert (await client.delete("/users/me")).status_code == 204

        async def is_refused() -> bool:
            return (await client.get("/users/me", headers=refused)).status_code == 401

        await eventually(is_refused, "the end of the session", 30)
        go_on()
        assert (await importing).status_code == 401
    assert await count(app, text("SELECT count(*) FROM items")) == 0
    assert await count(app, COUNT_STAGED) == 0


async def test_what_a_dead_process_has_left_is_deleted(app: FastAPI, client: AsyncClient) -> None:
    await report(send(client, json_lines(row(1))))
    owner_id = (await client.get("/users/me")).json()["id"]
    dead = first_uuid7(datetime.now(UTC) - staging.ABANDONED_AFTER - timedelta(minutes=1))
    insert = text("""
    INSERT INTO staged_items (owner_id, import_id, line, id, title, price)
    SELECT CAST(:owner_id AS uuid), import_id, line, CAST(:id AS uuid), 'Mug', 1
    FROM unnest(CAST(:imports AS uuid[])) AS import_id, generate_series(1, 3) AS line
    """)
    under_way = uuid7()
    async with database_of(app).transaction() as session:
        values = {"owner_id": owner_id, "id": uuid7(), "imports": [dead, under_way]}
        await session.execute(insert, values)
    await delete_abandoned_imports.run(app)
    left = await database_of(app).read().fetch(text("SELECT import_id FROM staged_items"))
    assert [found.import_id for found in left] == [under_way] * 3
    assert await titles(client) == ["Item 1"]
