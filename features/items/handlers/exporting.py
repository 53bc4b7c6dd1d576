"""Export of all items of an owner, streamed from one snapshot."""

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from sqlmodel import col

from features.items.handlers.single import OWNED
from features.items.schemas import ItemPublic
from features.items.tables import Item
from shared.db import SnapshotSession

BATCH_ROWS = 1_000
EVERYTHING = OWNED.order_by(col(Item.created_at), col(Item.id))


async def export_items(
    session: SnapshotSession, owner_id: UUID
) -> AsyncIterator[Sequence[ItemPublic]]:
    """Yields the owner's items in batches, oldest first."""
    async for batch in session.batches(EVERYTHING, {"owner_id": owner_id}, BATCH_ROWS):
        yield [ItemPublic.model_validate(dict(row)) for row in batch]
