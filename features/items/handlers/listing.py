"""Pages of an owner's items, by offset or by keyset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from features.items.handlers.single import PUBLIC
from features.items.schemas import ItemFilters, ItemQuery, ItemSort
from features.items.tables import Item
from shared.pagination import Keyset

PARSE: Mapping[str, Callable[[str], Any]] = {
    "created_at": datetime.fromisoformat,
    "updated_at": datetime.fromisoformat,
    "price": Decimal,
    "title": str,
}


@dataclass(frozen=True)
class Page:
    rows: Sequence[Row[Any]]
    total: int | None
    last: Keyset | None
    """Where the next page begins, or None on the last page."""


async def list_items(
    session: AsyncConnection, owner_id: UUID, query: ItemQuery, after: Keyset | None = None
) -> Page:
    """The owner's items that match, in the order asked for; ties are broken by id.

    With `after`, the page begins behind that row, wherever rows were added meanwhile.
    """
    matching = [col(Item.owner_id) == owner_id, *conditions(query), *_title_contains(query.q)]
    statement = _ordered(PUBLIC.where(*matching), query.sort)
    if after:
        statement = statement.where(_behind(after, query.sort))
    found = await session.execute(statement.offset(query.skip).limit(query.limit + 1))
    rows = found.all()
    total = None
    if query.total:
        count = select(func.count()).select_from(Item).where(*matching)
        total = (await session.execute(count)).scalar_one()
    page, more = rows[: query.limit], len(rows) > query.limit
    return Page(page, total, _keyset(page[-1], query.sort) if more else None)


def conditions(filters: ItemFilters) -> list[ColumnElement[bool]]:
    """The filters as SQL conditions on `items`."""
    bounds = [
        (filters.min_price, col(Item.price).__ge__),
        (filters.max_price, col(Item.price).__le__),
        (filters.created_after, col(Item.created_at).__gt__),
        (filters.created_before, col(Item.created_at).__lt__),
    ]
    return [compare(bound) for bound, compare in bounds if bound is not None]


def _title_contains(q: str | None) -> list[ColumnElement[bool]]:
    return [col(Item.title).icontains(q, autoescape=True)] if q else []


def _ordered(statement: Select[Any], sort: ItemSort) -> Select[Any]:
    columns = [getattr(Item, sort.column), col(Item.id)]
    return statement.order_by(*(c.desc() if sort.descending else c.asc() for c in columns))


def _behind(keyset: Keyset, sort: ItemSort) -> ColumnElement[bool]:
    column = getattr(Item, sort.column)
    row = tuple_(column, col(Item.id))
    value = literal(PARSE[sort.column](keyset.value), column.type)
    last = tuple_(value, literal(UUID(keyset.id)))
    return row < last if sort.descending else row > last


def _keyset(row: Row[Any], sort: ItemSort) -> Keyset:
    value = getattr(row, sort.column)
    return Keyset(value.isoformat() if isinstance(value, datetime) else str(value), str(row.id))
