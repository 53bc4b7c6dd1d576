"""Statements that are sent directly by asyncpg behave as if SQLAlchemy sent them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum

import asyncpg
import pytest
from pydantic import BaseModel
from sqlalchemy import (
    Column,
    Float,
    Integer,
    Interval,
    MetaData,
    Numeric,
    String,
    Table,
    TypeDecorator,
    any_,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import ArgumentError
from sqlmodel import UTCDateTime

from shared.db import Database, Row, write_session_of
from shared.db.tables import uuid7
from shared.settings import Settings
from shared.web.idempotency import SELECT_KEY, IdempotencyKey

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
    opened = Database(database_url, settings)
    yield opened
    await opened.dispose()


async def test_what_sqlalchemy_does_with_values_is_done(database: Database) -> None:
    """Applies defaults that Python computes, and types that convert the values sent."""
    async with database.transaction() as session:
        [made] = await session.fetch(insert(PARCELS).returning(PARCELS), {"contents": {"mugs": 2}})
        assert dict(made) == {"id": 7, "weight": 1, "contents": {"mugs": 2}}
        change = update(PARCELS).returning(PARCELS)
        [changed] = await session.fetch(change, {"contents": None})
        assert dict(changed) == {"id": 7, "weight": 2, "contents": None}
        [given] = await session.fetch(change, {"weight": 3})
        assert given.weight == 3


async def test_json_comes_out_the_same_of_every_session(database: Database) -> None:
    query = text("""SELECT '{"colour": "blue"}'::jsonb AS it""")
    async with database.transaction() as session:
        [written] = await session.fetch(query)
    [read] = await database.read().fetch(query)
    async with database.orm_transaction() as orm:
        of_orm = (await (await orm.connection()).execute(query)).one()
    assert written.it == read.it == of_orm.it == {"colour": "blue"}


class Shade(Enum):
    LIGHT = "light"
    DARK = "dark"


class Reversed(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: object) -> str | None:
        return value and value[::-1]

    def process_result_value(self, value: str | None, dialect: object) -> str | None:
        return value and value[::-1]


LAMPS = Table(
    "lamps",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("shade", EnumType(Shade, native_enum=False)),
    Column("shades", ARRAY(EnumType(Shade, native_enum=False))),
    Column("lit", Interval),
    Column("height", Numeric(10, 2, asdecimal=False)),
    Column("price", Numeric(10, 2)),
    Column("width", Float),
    Column("maker", Reversed),
    Column("tags", ARRAY(String)),
    Column("made_at", UTCDateTime()),
)
LAMP = {
    "id": 1,
    "shade": Shade.DARK,
    "shades": [Shade.LIGHT, Shade.DARK],
    "lit": timedelta(hours=2),
    "height": 1.5,
    "price": Decimal("19.99"),
    "width": 0.5,
    "maker": "Ada",
    "tags": ["a", "b"],
    "made_at": datetime(2026, 1, 31, tzinfo=UTC),
}


class Lamp(BaseModel):
    shade: Shade
    lit: timedelta


async def test_values_are_those_that_the_orm_returns(database: Database) -> None:
    query = select(LAMPS)
    async with database.transaction() as session:
        await (await session.orm.connection()).run_sync(LAMPS.metadata.create_all)
        [written] = await session.fetch(insert(LAMPS).returning(LAMPS), LAMP)
        of_orm = (await (await session.orm.connection()).execute(query)).one()
    row = await database.read().fetch_one(query)
    assert row
    async with database.snapshot() as snapshot:
        [[streamed]] = [batch async for batch in snapshot.batches(query, {}, 10)]
    for found in (written, row, streamed):
        assert dict(found) == LAMP == dict(of_orm._mapping)
        assert tuple(found) == tuple(LAMP.values())
    assert (row.shade, row["shade"], row[1]) == (Shade.DARK,) * 3
    with pytest.raises(AttributeError):
        _ = row.colour
    [lamp] = await database.read().fetch_as(Lamp, query)
    assert lamp == Lamp(shade=Shade.DARK, lit=timedelta(hours=2))
    assert await database.read().fetch_value(select(func.max(LAMPS.c.shade))) is Shade.DARK


async def test_only_what_needs_it_is_converted(database: Database) -> None:
    """A row of asyncpg is kept where its values are right, as to convert takes longer."""
    async with database.transaction() as session:
        await (await session.orm.connection()).run_sync(LAMPS.metadata.create_all)
        native = select(
            *(LAMPS.c[name] for name in ("id", "lit", "price", "width", "tags", "made_at"))
        )
        [row] = await session.fetch(insert(LAMPS).returning(*native.selected_columns), LAMP)
    assert type(row) is Row


async def test_what_only_sqlalchemy_can_send_is_refused(database: Database) -> None:
    listed = select(PARCELS).where(PARCELS.c.id.in_([1, 2]))
    with pytest.raises(ArgumentError, match="any_"):
        await database.read().fetch(listed)
    among = select(PARCELS).where(PARCELS.c.id == any_(bindparam("ids", type_=ARRAY(Integer))))
    assert await database.read().fetch(among, {"ids": [1, 2]}) == []


async def test_the_number_of_rows_is_told(database: Database) -> None:
    async with database.transaction() as session:
        assert await session.execute(insert(PARCELS), {"id": 1, "contents": None}) == 1
        many = [{"id": n, "contents": {"n": n}} for n in (2, 3)]
        assert await session.execute(insert(PARCELS), many) == 2
        assert await session.execute(insert(PARCELS), []) == 0
        assert await session.execute(update(PARCELS), {"weight": 5}) == 3
        assert await session.execute(delete(PARCELS).where(PARCELS.c.id == 9)) == 0
        with pytest.raises(ArgumentError, match="same keys"):
            await session.execute(insert(PARCELS), [{"id": 4}, {"id": 5, "weight": 1}])
    rows = await database.read().fetch(select(PARCELS).order_by(PARCELS.c.id))
    assert [(row.id, row.weight, row.contents) for row in rows] == [
        (1, 5, None),
        (2, 5, {"n": 2}),
        (3, 5, {"n": 3}),
    ]


async def test_rows_are_read_as_models_and_single_values(database: Database) -> None:
    class Parcel(BaseModel):
        id: int
        weight: int

    async with database.transaction() as session:
        await session.execute(insert(PARCELS), {"contents": None})
        assert await session.fetch_value(select(PARCELS.c.id)) == 7
        assert await session.fetch_value(select(PARCELS.c.id).where(PARCELS.c.id == 9)) is None
        assert await session.fetch_as(Parcel, select(PARCELS)) == [Parcel(id=7, weight=1)]


async def test_objects_are_flushed_before_statements(database: Database) -> None:
    kept = IdempotencyKey(
        owner_id=uuid7(),
        key="once",
        fingerprint="",
        status=200,
        headers={},
        body=b"",
        expires_at=datetime.now(UTC),
    )
    async with database.orm_transaction() as orm:
        orm.add(kept)
        this = {"owner_id": kept.owner_id, "key": kept.key}
        assert await write_session_of(orm).fetch_one(SELECT_KEY, this)


async def test_a_value_in_the_statement_itself_is_converted(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(insert(PARCELS), {"id": 1, "contents": {"n": 1}})
        emptied = update(PARCELS).where(PARCELS.c.contents == {"n": 1}).values(contents={"n": 0})
        assert await session.execute(emptied) == 1
        [row] = await session.fetch(select(PARCELS.c.contents))
        assert row.contents == {"n": 0}
