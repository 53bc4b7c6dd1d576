"""Pages of an owner's items, by offset or by keyset."""

from typing import Any
from uuid import UUID

from sqlalchemy import Numeric, bindparam, func

from features.items.handlers.crud import SELECT_ITEMS
from features.items.schemas import ItemQuery
from features.items.tables import ITEMS
from shared.db import ReadSession
from shared.web.pagination import ListQuery, Pages

LIST_ITEMS = ListQuery(
    "items",
    SELECT_ITEMS,
    {
        "q": func.strpos(func.lower(ITEMS.c.title), func.lower(bindparam("q"))) > 0,
        "min_price": ITEMS.c.price >= bindparam("min_price", type_=Numeric()),
        "max_price": ITEMS.c.price <= bindparam("max_price", type_=Numeric()),
        "created_after": ITEMS.c.created_at > bindparam("created_after"),
        "created_before": ITEMS.c.created_at < bindparam("created_before"),
    },
)


async def list_items(
    session: ReadSession, pages: Pages, owner_id: UUID, query: ItemQuery
) -> dict[str, Any]:
    """Returns a page of the owner's matching items."""
    return await pages.fetch(session, LIST_ITEMS, query, owner=owner_id)
