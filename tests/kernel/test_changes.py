"""Published changes: subscribers run in the transaction, tasks are woken after it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text

from shared.db import Database
from shared.db.changes import Change, ChangeKind, Topic
from shared.db.notifications import NOTIFY
from shared.db.sessions import WriteSession
from shared.problems import Conflict
from shared.settings import Settings
from tests.kit import eventually, max_queries, within

OWNER, ROW = UUID(int=1), UUID(int=2)
INSERT_ROW = text("INSERT INTO rows (id) VALUES (:id)")
INSERT_COPY = text("INSERT INTO copies (id) SELECT unnest(CAST(:ids AS uuid[]))")
NOTIFY_LATER = text(f"{NOTIFY}, pg_advisory_xact_lock(1)")
rows, others = Topic("rows"), Topic("others")


async def copy_rows(session: WriteSession, change: Change) -> None:
    await session.execute(INSERT_COPY, {"ids": change.ids})
    session.notify("copies")


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE rows (id uuid); CREATE TABLE copies (id uuid)")
    yield connection
    await connection.close()


@pytest.fixture
async def database(database_url: str, settings: Settings) -> AsyncIterator[Database]:
    opened = Database(database_url, settings, {"rows": [copy_rows]})
    yield opened
    await opened.dispose()


async def insert(database: Database, topic: Topic = rows, *, then: Exception | None = None) -> None:
    async with database.transaction() as session:
        await session.execute(INSERT_ROW, {"id": ROW})
        await topic.created(session, OWNER, [ROW])
        if then:
            raise then


async def test_what_a_subscriber_writes_is_committed_with_the_change(
    connection: "asyncpg.Connection[asyncpg.Record]", database: Database
) -> None:
    with pytest.raises(Conflict):
        await insert(database, then=Conflict("No"))
    assert await connection.fetch("SELECT FROM copies") == []
    await insert(database)
    assert await connection.fetchval("SELECT id FROM copies") == ROW


async def test_a_subscriber_that_fails_undoes_the_change(
    connection: "asyncpg.Connection[asyncpg.Record]", database: Database
) -> None:
    await connection.execute("DROP TABLE copies")
    with pytest.raises(asyncpg.UndefinedTableError):
        await insert(database)
    assert await connection.fetch("SELECT FROM rows") == []


async def test_a_change_tells_what_happened_to_which_rows_of_whom(
    database_url: str, settings: Settings
) -> None:
    seen: list[Change] = []

    async def see(_session: WriteSession, change: Change) -> None:
        seen.append(change)

    database = Database(database_url, settings, {"rows": [see, see]})
    async with database.transaction() as session:
        await rows.updated(session, OWNER, [ROW])
        await rows.deleted(session, OWNER, [ROW])
        await rows.deleted(session, OWNER, [])  # is no change
        await others.created(session, OWNER, [ROW])
    await database.dispose()
    updated = Change("rows", ChangeKind.UPDATED, OWNER, [ROW])
    deleted = Change("rows", ChangeKind.DELETED, OWNER, [ROW])
    assert seen == [updated, updated, deleted, deleted]


async def test_a_change_without_subscribers_sends_no_statement(
    connection: "asyncpg.Connection[asyncpg.Record]", database: Database
) -> None:
    with max_queries(1):
        await insert(database, others)


async def test_others_are_notified_after_the_commit_and_seldom(
    connection: "asyncpg.Connection[asyncpg.Record]",
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.db.notifications.NOTIFY", NOTIFY_LATER)
    heard: list[str] = []
    await connection.add_listener("copies", lambda *given: heard.append(given[2]))
    with pytest.raises(Conflict):
        await insert(database, then=Conflict("No"))
    await connection.execute("SELECT pg_advisory_lock(1)")
    await asyncio.gather(*(insert(database) for _ in range(20)))
    assert await connection.fetchval("SELECT count(*) FROM copies") == 20
    assert heard == []
    await connection.execute("SELECT pg_advisory_unlock(1)")
    await eventually(lambda: len(heard) == 2, "a notification of the first, and of all since")
    await database.dispose()
    await connection.execute("SELECT 1")
    assert len(heard) == 2


async def test_a_lost_notification_fails_no_write(
    connection: "asyncpg.Connection[asyncpg.Record]",
    database: Database,
    events: list[Mapping[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.db.notifications.NOTIFY", text("SELECT 1 / 0"))
    async with within(20, "the write"):
        await insert(database)
    await eventually(lambda: "notification_lost" in str(events), "the line of the log")
    assert await connection.fetchval("SELECT id FROM copies") == ROW
