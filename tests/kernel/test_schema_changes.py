"""A migration changes a column's type while the service runs, with plans on every connection."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from fastapi import APIRouter, FastAPI
from httpx import AsyncClient
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel import select

from shared.db import OrmSession, ReadSession, SnapshotSession, WriteSession
from shared.settings import Settings
from tests.app_helpers import app_with, assert_problem
from tests.kit import within

CONNECTIONS = 4  # in each pool; a snapshot may use half of them
CREATE_NOTES = "CREATE TABLE notes (id int PRIMARY KEY, size int); INSERT INTO notes VALUES (1, 2)"
CHANGE_TYPE = "ALTER TABLE notes ALTER size TYPE bigint"
SELECT_NOTES = text("SELECT size FROM notes")
UPDATE_NOTES = text("UPDATE notes SET size = size RETURNING size")


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"database_pool_size": CONNECTIONS})


@pytest.fixture
async def app(settings: Settings, database_url: str) -> AsyncIterator[FastAPI]:
    probe = APIRouter(prefix="/probe", tags=["probe"])

    @probe.post("/write")
    async def write(session: WriteSession, seconds: float = 0) -> Any:
        """Writes by asyncpg."""
        size = await session.fetch_value(UPDATE_NOTES)
        await session.fetch(text(f"SELECT pg_sleep({seconds})"))
        return size

    @probe.post("/orm")
    async def orm(session: WriteSession, orm: OrmSession, seconds: float = 0) -> Any:
        """Reads and writes objects."""
        size = (await orm.exec(select(Note.size))).one()
        await session.fetch(text(f"SELECT pg_sleep({seconds})"))
        return size

    @probe.post("/read")
    async def read(session: ReadSession, seconds: float = 0) -> Any:
        """Reads in autocommit mode."""
        sql = "SELECT size, pg_sleep(CAST(:seconds AS float8)) FROM notes"
        return await session.fetch_value(text(sql), {"seconds": seconds})

    @probe.post("/snapshot")
    async def snapshot(session: SnapshotSession, seconds: float = 0) -> Any:
        """Reads with a cursor."""
        batches = [batch async for batch in session.batches(SELECT_NOTES, {}, 1)]
        await asyncio.sleep(seconds)
        return batches[0][0].size

    await change(database_url, CREATE_NOTES)
    async with app_with(settings, probe) as running:
        yield running


async def change(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


async def use_all_connections(client: AsyncClient, kind: str) -> None:
    """Sends requests at once, so that each connection of a pool has the plan."""
    path = f"/probe/{kind}?seconds=0.1"
    count = CONNECTIONS // 2 if kind == "snapshot" else CONNECTIONS
    async with within(30, "the first answers"):
        answers = await asyncio.gather(*(client.post(path) for _ in range(count)))
    assert {answer.status_code for answer in answers} == {200}, answers[0].text


@pytest.mark.parametrize("kind", ["write", "orm", "snapshot"])
async def test_one_request_in_all_is_told_to_try_again(
    anonymous: AsyncClient, database_url: str, kind: str
) -> None:
    await use_all_connections(anonymous, kind)
    for _ in range(2):  # the second time as the first
        await change(database_url, CHANGE_TYPE)
        answers = [await anonymous.post(f"/probe/{kind}") for _ in range(3 * CONNECTIONS)]
        refused = [answer for answer in answers if answer.status_code != 200]
        (one,) = refused
        assert "migrated" in assert_problem(one, 503)["detail"]
        assert int(one.headers["retry-after"]) > 0
        await change(database_url, CHANGE_TYPE.replace("bigint", "int"))
        await anonymous.post(f"/probe/{kind}")
        await use_all_connections(anonymous, kind)


async def test_a_read_is_repeated_on_each_connection(
    anonymous: AsyncClient, database_url: str
) -> None:
    await use_all_connections(anonymous, "read")
    await change(database_url, CHANGE_TYPE)
    answers = [await anonymous.post("/probe/read") for _ in range(3 * CONNECTIONS)]
    assert Counter(answer.status_code for answer in answers) == {200: 3 * CONNECTIONS}
    await use_all_connections(anonymous, "read")


async def test_a_write_that_has_failed_so_changes_the_connections_of_all_pools(
    anonymous: AsyncClient, database_url: str
) -> None:
    for kind in ("write", "snapshot"):
        await use_all_connections(anonymous, kind)
    await change(database_url, CHANGE_TYPE)
    assert_problem(await anonymous.post("/probe/write"), 503)
    for kind in ("write", "snapshot"):
        await use_all_connections(anonymous, kind)
