"""Deletes the items of deleted accounts, in batches."""

from features.items.tables import ITEMS
from shared.db import WriteSession
from shared.db.changes import Change
from shared.db.tables import delete_owned_rows


async def delete_all_items(session: WriteSession, deleted: Change) -> int:
    """Deletes a batch of the items of a deleted account; returns how many, 0 when none is left."""
    return await delete_owned_rows(session, ITEMS, deleted.owner_id)
