"""Deletes the items of deleted accounts, in batches."""

from sqlalchemy import bindparam, delete, select

from features.items.tables import ITEMS
from shared.db import WriteSession
from shared.db.changes import Change

DELETED_PER_BATCH = 5_000
IS_OWNERS = ITEMS.c.owner_id == bindparam("owner_id")
DELETE_BATCH = delete(ITEMS).where(
    IS_OWNERS, ITEMS.c.id.in_(select(ITEMS.c.id).where(IS_OWNERS).limit(DELETED_PER_BATCH))
)


async def delete_all_items(session: WriteSession, deleted: Change) -> int:
    """Deletes a batch of the items of a deleted account; returns how many, 0 when none is left."""
    return await session.execute(DELETE_BATCH, {"owner_id": deleted.owner_id})
