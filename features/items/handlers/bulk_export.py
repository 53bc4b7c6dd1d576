"""Export of all items of an owner, streamed from one snapshot."""

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from features.items.handlers.crud import SELECT_ITEMS
from features.items.schemas import ItemPublic
from features.items.tables import ITEMS
from shared.db import SnapshotSession

BATCH_ROWS = 1_000
SELECT_ITEMS_OLDEST_FIRST = SELECT_ITEMS.order_by(ITEMS.c.created_at, ITEMS.c.id)


async def export_items(
    session: SnapshotSession, owner_id: UUID
) -> AsyncIterator[Sequence[ItemPublic]]:
    """Yields the owner's items in batches, oldest first."""
    values = {"owner_id": owner_id}
    async for batch in session.batches(SELECT_ITEMS_OLDEST_FIRST, values, BATCH_ROWS):
        yield [ItemPublic.model_validate(dict(row)) for row in batch]
