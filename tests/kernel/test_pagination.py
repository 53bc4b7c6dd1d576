"""Paging works if columns and filters have names that its own statements use."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, bindparam, select

from shared.db import Database
from shared.problems import BadRequest
from shared.settings import Settings
from shared.web.pagination import ListQuery, PageQuery, Paginator, Sort

NAMES = ("total", "rows", "page", "limit", "last_value", "last_id")
ORDERS = Table(
    "orders",
    MetaData(),
    Column("id", Integer, primary_key=True),
    *(Column(name, Integer) for name in NAMES),
)
FILTERED = ("rows", "last_value", "last_id")
LISTING = ListQuery(
    "orders", select(ORDERS), {name: ORDERS.c[name] == bindparam(name) for name in FILTERED}
)

PAGES = Paginator(b"key")


class OrderSort(Sort):
    TOTAL = "total"
    LAST_ID = "-last_id"


class OrderQuery(PageQuery):
    sort: Sort = OrderSort.TOTAL
    rows: int | None = None
    last_value: int | None = None
    last_id: int | None = None


@pytest.fixture
async def database(settings: Settings, database_url: str) -> AsyncIterator[Database]:
    """Five orders: each column holds ten times the id, except `rows`, which is 1 or 2."""
    connection = await asyncpg.connect(database_url)
    columns = ", ".join(f'"{name}" integer' for name in NAMES)
    await connection.execute(f"CREATE TABLE orders (id integer, {columns})")
    for number in range(1, 6):
        values: list[Any] = [number, *([number * 10] * len(NAMES))]
        values[1 + NAMES.index("rows")] = 1 + number % 2
        places = ", ".join(f"${place}" for place in range(1, len(values) + 1))
        await connection.execute(f"INSERT INTO orders VALUES ({places})", *values)
    await connection.close()
    opened = Database(database_url, settings)
    yield opened
    await opened.dispose()


async def test_a_column_keeps_its_value_beside_the_number_of_matches(database: Database) -> None:
    page = await PAGES.fetch(database.read(), LISTING, OrderQuery(limit=2))
    assert page["total"] == 5
    assert [[row[name] for name in ("id", "total", "page", "limit")] for row in page["items"]] == [
        [1, 10, 10, 10],
        [2, 20, 20, 20],
    ]


async def test_a_filter_may_have_any_name(database: Database) -> None:
    query = OrderQuery(rows=2, last_value=30, last_id=30, limit=1)
    page = await PAGES.fetch(database.read(), LISTING, query)
    assert (page["total"], [row["id"] for row in page["items"]]) == (1, [3])


@pytest.mark.parametrize(
    ("sort", "expected"), [(OrderSort.TOTAL, [1, 3, 5]), (OrderSort.LAST_ID, [5, 3, 1])]
)
async def test_a_cursor_goes_on_beside_such_filters(
    database: Database, sort: Sort, expected: list[int]
) -> None:
    query = OrderQuery(rows=2, sort=sort, limit=1)
    seen: list[int] = []
    for _ in expected:
        page = await PAGES.fetch(database.read(), LISTING, query)
        seen += [row["id"] for row in page["items"]]
        query = query.model_copy(update={"cursor": page["next_cursor"]})
    assert (seen, query.cursor) == (expected, None)


async def test_a_cursor_of_one_list_is_not_for_another_or_for_other_parameters(
    database: Database,
) -> None:
    rows = select(ORDERS).where(ORDERS.c.id > bindparam("above"))
    mine, returns = ListQuery("orders", rows, {}), ListQuery("returns", rows, {})
    page = await PAGES.fetch(database.read(), mine, OrderQuery(limit=1), above=0)
    cursor = page["next_cursor"]
    again = await PAGES.fetch(database.read(), mine, OrderQuery(limit=1, cursor=cursor), above=0)
    assert [row["id"] for row in again["items"]] == [2]
    with pytest.raises(BadRequest):
        await PAGES.fetch(database.read(), returns, OrderQuery(limit=1, cursor=cursor), above=0)
    with pytest.raises(BadRequest):
        await PAGES.fetch(database.read(), mine, OrderQuery(limit=1, cursor=cursor), above=1)
