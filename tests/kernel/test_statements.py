"""Statements that are sent directly by asyncpg behave as if SQLAlchemy sent them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Table,
    any_,
    bindparam,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import ArgumentError

from shared.db.database import Database, open_database
from shared.db.dependencies import orm_session, reading, statements, writing
from shared.settings import Settings
from shared.web.idempotency import KEPT, IdempotencyKey

PARCELS = Table(
    "parcels",
    MetaData(),
    Column("id", Integer, primary_key=True, default=lambda: 7),
    Column("weight", Integer, default=1, onupdate=lambda: 2),
    Column("contents", JSONB(none_as_null=True)),
)


@pytest.fixture
async def database(settings: Settings, database_url: str) -> AsyncIterator[Database]:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE TABLE parcels (id integer, weight integer, contents jsonb)")
    await connection.close()
    opened = open_database(database_url, settings)
    yield opened
    await opened.dispose()


async def test_what_sqlalchemy_does_with_values_is_done(database: Database) -> None:
    """Applies defaults that Python computes, and types that convert the values sent."""
    async with writing(database) as session:
        [made] = await session.fetch(insert(PARCELS).returning(PARCELS), {"contents": {"mugs": 2}})
        assert dict(made) == {"id": 7, "weight": 1, "contents": {"mugs": 2}}
        change = update(PARCELS).returning(PARCELS)
        [changed] = await session.fetch(change, {"contents": None})
        assert dict(changed) == {"id": 7, "weight": 2, "contents": None}
        [given] = await session.fetch(change, {"weight": 3})
        assert given.weight == 3


async def test_json_comes_out_the_same_of_every_session(database: Database) -> None:
    query = text("""SELECT '{"colour": "blue"}'::jsonb AS it""")
    async with writing(database) as session:
        [written] = await session.fetch(query)
    [read] = await reading(database).fetch(query)
    async with orm_session(database) as orm:
        of_orm = (await (await orm.connection()).execute(query)).one()
    assert written.it == read.it == of_orm.it == {"colour": "blue"}


async def test_what_only_sqlalchemy_can_send_is_refused(database: Database) -> None:
    listed = select(PARCELS).where(PARCELS.c.id.in_([1, 2]))
    with pytest.raises(ArgumentError, match="any_"):
        await reading(database).fetch(listed)
    among = select(PARCELS).where(PARCELS.c.id == any_(bindparam("ids", type_=ARRAY(Integer))))
    assert await reading(database).fetch(among, {"ids": [1, 2]}) == []


async def test_statements_are_part_of_the_transaction_of_an_orm_session(database: Database) -> None:
    async with orm_session(database) as orm:
        await (await statements(orm)).execute(insert(PARCELS), {"contents": None})
        await orm.rollback()
    assert await reading(database).fetch(select(PARCELS)) == []


async def test_objects_are_flushed_before_statements(database: Database) -> None:
    kept = IdempotencyKey(
        key="once", fingerprint="", status=200, headers={}, body=b"", expires_at=datetime.now(UTC)
    )
    async with orm_session(database) as orm:
        orm.add(kept)
        this = {"user_id": kept.user_id, "key": kept.key}
        assert await (await statements(orm)).fetch_one(KEPT, this)
