"""Export of all items of an owner, streamed from one snapshot as far as its time allows."""

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from sqlalchemy import bindparam, tuple_

from features.items.handlers.crud import SELECT_ITEMS
from features.items.schemas import ItemPublic
from features.items.tables import ITEMS
from shared.db import SnapshotSession

BATCH_ROWS = 100  # of 40 kB at most: each of many downloads has as many in memory
POSITION = (ITEMS.c.created_at, ITEMS.c.id)
SELECT_ITEMS_OLDEST_FIRST = SELECT_ITEMS.order_by(*POSITION)
SELECT_FOLLOWING_ITEMS = SELECT_ITEMS_OLDEST_FIRST.where(
    tuple_(*POSITION)
    > tuple_(*(bindparam(f"after_{each.name}", type_=each.type) for each in POSITION))
)


async def export_items(
    session: SnapshotSession, owner_id: UUID
) -> AsyncIterator[Sequence[ItemPublic]]:
    """Yields the owner's items in batches, oldest first.

    If a slow client outlasts the snapshot, continues in a new one: no item comes twice, and no item
    is missing that existed all the time.
    """
    values = {"owner": owner_id}
    async for batch in session.batches(
        SELECT_ITEMS_OLDEST_FIRST, values, BATCH_ROWS, SELECT_FOLLOWING_ITEMS
    ):
        yield [ItemPublic.model_validate(dict(row)) for row in batch]
