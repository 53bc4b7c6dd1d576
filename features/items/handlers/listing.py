"""Pages of an owner's items, by offset or by keyset."""

from uuid import UUID

from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from features.items.handlers.single import PUBLIC
from features.items.schemas import ItemFilters, ItemQuery
from features.items.tables import Item
from shared.pagination import Keyset, Rows, fetch_page


async def list_items(
    session: AsyncConnection, owner_id: UUID, query: ItemQuery, after: Keyset | None = None
) -> Rows:
    """A page of the owner's items that match."""
    owned = PUBLIC.where(col(Item.owner_id) == owner_id)
    matching = owned.where(*conditions(query), *_title_contains(query.q))
    return await fetch_page(session, matching, query, after)


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
