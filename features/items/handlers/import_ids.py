"""Rows of an import that name an item by its `id`, as those of an export do.

A row whose `id` is that of an item of the owner is that item. If the item has an `external_id`,
the row becomes one with that; else it can give the item one. Any other `id`, another owner's too,
is not looked at, so that nothing tells whether it exists.
"""

from collections.abc import Mapping
from uuid import UUID

import sqlalchemy as sa

from shared.db import WriteSession

HAS_ANOTHER_KEY = "external_id: the item with this id has another one, which only a PATCH changes"
KEY_IS_TAKEN = "external_id: it is that of another item or of another row"

LOCK_ITEMS = sa.text("""
WITH locked AS (
    SELECT id FROM items WHERE owner_id = :owner AND id IN (SELECT item_id FROM import_rows)
    ORDER BY id FOR UPDATE
)
SELECT count(*) FROM locked
""")
IGNORE_OTHER_IDS = sa.text("""
UPDATE import_rows AS row SET item_id = NULL WHERE item_id IS NOT NULL
AND NOT EXISTS (SELECT FROM items WHERE owner_id = :owner AND items.id = row.item_id)
""")
# Without the field, `external_id` is the `id`.
IGNORE_IDS_AS_KEYS = sa.text("""
UPDATE import_rows SET external_id = NULL WHERE lower(external_id) = CAST(item_id AS text)
""")
REJECT_OTHER_KEYS = sa.text("""
DELETE FROM import_rows AS row USING items AS item
WHERE item.owner_id = :owner AND item.id = row.item_id AND item.external_id <> row.external_id
RETURNING row.line
""")
USE_KEYS_OF_ITEMS = sa.text("""
UPDATE import_rows AS row SET external_id = item.external_id, item_id = NULL FROM items AS item
WHERE item.owner_id = :owner AND item.id = row.item_id AND item.external_id IS NOT NULL
""")
REJECT_TAKEN_KEYS = sa.text("""
WITH claims AS (
    SELECT line, item_id, external_id,
        min(coalesce(CAST(item_id AS text), '')) OVER same_key
            <> max(coalesce(CAST(item_id AS text), '')) OVER same_key AS is_shared,
        first_value(external_id) OVER (PARTITION BY item_id ORDER BY line) <> external_id
            AS is_second
    FROM import_rows WHERE external_id IS NOT NULL
    WINDOW same_key AS (PARTITION BY external_id)
)
DELETE FROM import_rows AS row USING claims
LEFT JOIN items AS other
    ON other.owner_id = :owner AND other.external_id = claims.external_id
WHERE row.line = claims.line AND claims.item_id IS NOT NULL
AND (is_shared OR is_second OR other.id IS NOT NULL)
RETURNING row.line
""")
GIVE_EACH_ROW_THE_KEY = sa.text("""
UPDATE import_rows AS row SET external_id = claimed.external_id
FROM (
    SELECT item_id, max(external_id) AS external_id FROM import_rows
    WHERE item_id IS NOT NULL GROUP BY item_id
) AS claimed
WHERE row.item_id = claimed.item_id AND row.external_id IS DISTINCT FROM claimed.external_id
""")


async def resolve_ids(session: WriteSession, owner_id: UUID) -> Mapping[int, str]:
    """Leaves an `item_id` only in the rows of items without an `external_id`, and locks these.

    Returns why rows were rejected, by line.
    """
    values = {"owner": owner_id}
    await session.fetch(LOCK_ITEMS, values)
    await session.execute(IGNORE_OTHER_IDS, values)
    await session.execute(IGNORE_IDS_AS_KEYS)
    other_keys = await session.fetch(REJECT_OTHER_KEYS, values)
    await session.execute(USE_KEYS_OF_ITEMS, values)
    taken_keys = await session.fetch(REJECT_TAKEN_KEYS, values)
    await session.execute(GIVE_EACH_ROW_THE_KEY)
    return {row.line: HAS_ANOTHER_KEY for row in other_keys} | {
        row.line: KEY_IS_TAKEN for row in taken_keys
    }
