"""Each hot query uses its index, and reads no more rows than it returns."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import Select

from features.items.handlers.crud import SELECT_ITEM
from features.items.handlers.listing import LIST_ITEMS
from features.items.schemas import ItemSort
from shared.db.statements import compile_statement
from shared.web.pagination import LAST_ID, LAST_VALUE, ROWS, SKIP, count_statement, page_statement

OWNERS = 20
ITEMS_EACH = 500
INSERT_ITEMS_OF_MANY_OWNERS = f"""
WITH owners AS (
    INSERT INTO users (id, email)
    SELECT gen_random_uuid(), n || '@example.com' FROM generate_series(1, {OWNERS}) AS n
    RETURNING id
)
INSERT INTO items (id, owner_id, title, price)
SELECT gen_random_uuid(), id, 'Mug ' || n, 1 + n
FROM owners, generate_series(1, {ITEMS_EACH}) AS n
"""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A connection to a database with items of many owners."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(INSERT_ITEMS_OF_MANY_OWNERS)
    await connection.execute("ANALYZE")
    yield connection
    await connection.close()


async def plan(
    connection: "asyncpg.Connection[Any]", statement: Select[Any], **values: Any
) -> list[dict[str, Any]]:
    """Returns the nodes of the plan that PostgreSQL executed."""
    row = await connection.fetchrow("SELECT id, owner_id FROM items LIMIT 1")
    assert row
    known = {"item_id": row["id"], "owner": row["owner_id"], SKIP: 0, ROWS: 21} | values
    sql, arguments = compile_statement(statement, known)
    explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}"
    return list(_nodes(json.loads(await connection.fetchval(explain, *arguments))[0]["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def middle_value(sort: ItemSort) -> str:
    """Returns a value of the sort column that many rows follow."""
    if sort.column.endswith("_at"):
        return "2100-01-01 00:00:00+00" if sort.descending else "2020-01-01 00:00:00+00"
    return {"price": "250", "title": "Mug 3"}[sort.column]


@pytest.mark.one_server
@pytest.mark.parametrize("after_cursor", [False, True])
async def test_a_page_reads_its_rows_from_the_index_of_its_order(
    connection: "asyncpg.Connection[Any]", after_cursor: bool
) -> None:
    for sort in ItemSort:
        statement = page_statement(LIST_ITEMS, frozenset(), sort, after_cursor=after_cursor)
        place = {LAST_VALUE: middle_value(sort), LAST_ID: str(UUID(int=0))}
        nodes = await plan(connection, statement, **place)
        (scan,) = [node for node in nodes if "Scan" in node["Node Type"]]
        assert scan["Index Name"] == f"ix_items_owner_id_{sort.column}", sort
        assert scan["Actual Rows"] <= 21, sort
        assert "Sort" not in {node["Node Type"] for node in nodes}, sort


@pytest.mark.one_server
async def test_one_item_is_read_by_its_key(connection: "asyncpg.Connection[Any]") -> None:
    assert [node.get("Index Name") for node in await plan(connection, SELECT_ITEM)] == ["pk_items"]


@pytest.mark.one_server
async def test_the_total_reads_only_its_owners_rows(
    connection: "asyncpg.Connection[Any]",
) -> None:
    nodes = await plan(connection, count_statement(LIST_ITEMS, frozenset()))
    (scan,) = [node for node in nodes if "Index Name" in node]
    assert "_items_owner_id_" in scan["Index Name"]
    assert scan["Actual Rows"] == ITEMS_EACH
