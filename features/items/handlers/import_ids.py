"""Resolves the rows of an import that name an item by its `id`, as the rows of an export do.

A row with the `id` of an item of the owner replaces that item. If the item has an `external_id`,
the row gets it; else the row may give the item one. Any other `id`, that of another owner's item
too, is ignored, so that no answer tells whether it exists.
"""

from collections.abc import Mapping
from uuid import UUID

import sqlalchemy as sa

from shared.db import WriteSession

HAS_ANOTHER_KEY = "external_id: the item with this id has another one, which only a PATCH changes"
KEY_IS_TAKEN = "external_id: it is that of another item or of another row"

# PostgreSQL has no statistics of new rows, and expects few: nested loops would take the square of
# their number.
SET_NESTED_LOOPS = sa.text("SELECT set_config('enable_nestloop', :allowed, true)")
LOCK_ITEMS = sa.text("""
SELECT id FROM items WHERE owner_id = :owner AND id = ANY (ARRAY(
    SELECT item_id FROM staged_items
    WHERE owner_id = :owner AND import_id = :import_id AND item_id IS NOT NULL))
ORDER BY id FOR UPDATE
""")
IGNORE_OTHER_IDS = sa.text("""
UPDATE staged_items AS row SET item_id = NULL
WHERE row.owner_id = :owner AND row.import_id = :import_id AND item_id IS NOT NULL
AND NOT EXISTS (SELECT FROM items WHERE owner_id = :owner AND items.id = row.item_id)
""")
# Without the field, `external_id` is the `id`.
IGNORE_IDS_AS_KEYS = sa.text("""
UPDATE staged_items SET external_id = NULL
WHERE owner_id = :owner AND import_id = :import_id AND lower(external_id) = CAST(item_id AS text)
""")
REJECT_OTHER_KEYS = sa.text("""
DELETE FROM staged_items AS row USING items AS item
WHERE row.owner_id = :owner AND row.import_id = :import_id AND item.owner_id = :owner
AND item.id = row.item_id AND item.external_id <> row.external_id
RETURNING row.line
""")
USE_KEYS_OF_ITEMS = sa.text("""
UPDATE staged_items AS row SET external_id = item.external_id, item_id = NULL FROM items AS item
WHERE row.owner_id = :owner AND row.import_id = :import_id AND item.owner_id = :owner
AND item.id = row.item_id AND item.external_id IS NOT NULL
""")
REJECT_TAKEN_KEYS = sa.text("""
WITH claims AS (
    SELECT line, item_id, external_id,
        min(coalesce(CAST(item_id AS text), '')) OVER same_key
            <> max(coalesce(CAST(item_id AS text), '')) OVER same_key AS is_shared,
        first_value(external_id) OVER (PARTITION BY item_id ORDER BY line) <> external_id
            AS is_second
    FROM staged_items
    WHERE owner_id = :owner AND import_id = :import_id AND external_id IS NOT NULL
    WINDOW same_key AS (PARTITION BY external_id)
)
DELETE FROM staged_items
WHERE owner_id = :owner AND import_id = :import_id AND line = ANY (ARRAY(
    SELECT claims.line FROM claims
    LEFT JOIN items AS other
        ON other.owner_id = :owner AND other.external_id = claims.external_id
    WHERE claims.item_id IS NOT NULL AND (is_shared OR is_second OR other.id IS NOT NULL)
))
RETURNING line
""")
GIVE_EACH_ROW_THE_KEY = sa.text("""
UPDATE staged_items AS row SET external_id = claimed.external_id
FROM (
    SELECT item_id, max(external_id) AS external_id FROM staged_items
    WHERE owner_id = :owner AND import_id = :import_id AND item_id IS NOT NULL GROUP BY item_id
) AS claimed
WHERE row.owner_id = :owner AND row.import_id = :import_id
AND row.item_id = claimed.item_id AND row.external_id IS DISTINCT FROM claimed.external_id
""")


async def resolve_ids(session: WriteSession, of_import: Mapping[str, UUID]) -> Mapping[int, str]:
    """Leaves an `item_id` only in the rows of items without an `external_id`, and locks these.

    Returns why rows were rejected, by line.
    """
    await session.execute(SET_NESTED_LOOPS, {"allowed": "off"})
    await session.execute(LOCK_ITEMS, of_import)
    await session.execute(IGNORE_OTHER_IDS, of_import)
    await session.execute(IGNORE_IDS_AS_KEYS, of_import)
    other_keys = await session.fetch(REJECT_OTHER_KEYS, of_import)
    await session.execute(USE_KEYS_OF_ITEMS, of_import)
    taken_keys = await session.fetch(REJECT_TAKEN_KEYS, of_import)
    await session.execute(GIVE_EACH_ROW_THE_KEY, of_import)
    await session.execute(SET_NESTED_LOOPS, {"allowed": "on"})
    return {row.line: HAS_ANOTHER_KEY for row in other_keys} | {
        row.line: KEY_IS_TAKEN for row in taken_keys
    }
