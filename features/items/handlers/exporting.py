"""All of an owner's items, streamed from one snapshot."""

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col

from features.items.handlers.single import PUBLIC
from features.items.schemas import ItemPublic
from features.items.tables import Item

BATCH_ROWS = 1_000


async def export_items(
    session: AsyncConnection, owner_id: UUID
) -> AsyncIterator[Sequence[ItemPublic]]:
    """The owner's items in batches, oldest first; needs a snapshot, for its cursor."""
    everything = PUBLIC.where(col(Item.owner_id) == owner_id)
    ordered = everything.order_by(col(Item.created_at), col(Item.id))
    async with session.stream(ordered.execution_options(yield_per=BATCH_ROWS)) as rows:
        async for batch in rows.partitions():
            yield [ItemPublic.model_validate(row) for row in batch]
