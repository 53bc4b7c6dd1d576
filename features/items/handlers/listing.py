"""Pages of an owner's items, by offset or by keyset."""

from uuid import UUID

from sqlalchemy import Numeric, bindparam, func
from sqlmodel import col

from features.items.handlers.single import OWNED
from features.items.schemas import ItemQuery
from features.items.tables import Item
from shared.db import ReadSession
from shared.web.pagination import CursorPosition, ListQuery, PageRows, fetch_page

ITEMS = ListQuery(
    OWNED,
    {
        "q": func.strpos(func.lower(Item.title), func.lower(bindparam("q"))) > 0,
        "min_price": col(Item.price) >= bindparam("min_price", type_=Numeric()),
        "max_price": col(Item.price) <= bindparam("max_price", type_=Numeric()),
        "created_after": col(Item.created_at) > bindparam("created_after"),
        "created_before": col(Item.created_at) < bindparam("created_before"),
    },
)


async def list_items(
    session: ReadSession, owner_id: UUID, query: ItemQuery, after: CursorPosition | None = None
) -> PageRows:
    """Returns a page of the owner's matching items."""
    return await fetch_page(session, ITEMS, query, after, owner_id=owner_id)
