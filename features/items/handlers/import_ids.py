"""Resolves the rows of an import that name an item by its `id`, as the rows of an export do.

A row with the `id` of an item of the owner replaces that item. If the item has an `external_id`,
the row gets it; else the row may give the item one that no item has. Rows before it in the file
count as if they were applied. Any other `id`, that of another owner's item too, is ignored, so that
no answer tells whether it exists.
"""

from collections.abc import Iterable, Mapping
from uuid import UUID

import sqlalchemy as sa

from shared.db import Row, WriteSession

HAS_ANOTHER_KEY = "external_id: the item with this id has another one, which only a PATCH changes"
KEY_IS_TAKEN = "external_id: it is that of another item"

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
# Claims: rows that give a key to an item that had none. These are the ones whose key or item is in
# another row of the file too, with another item or key, or whose key is that of another item.
SELECT_CONTESTED_CLAIMS = sa.text("""
SELECT line, item_id, claim.external_id, other.id IS NOT NULL OR named_at < line AS is_taken
FROM (
    SELECT line, item_id, external_id,
        min(line) FILTER (WHERE item_id IS NULL) OVER same_key AS named_at,
        min(CAST(item_id AS text)) OVER same_key <> max(CAST(item_id AS text)) OVER same_key
            AS has_two_items,
        min(external_id) OVER same_item <> max(external_id) OVER same_item AS has_two_keys
    FROM staged_items
    WHERE owner_id = :owner AND import_id = :import_id AND external_id IS NOT NULL
    WINDOW same_key AS (PARTITION BY external_id), same_item AS (PARTITION BY item_id)
) AS claim
LEFT JOIN items AS other
    ON other.owner_id = :owner AND other.external_id = claim.external_id
WHERE item_id IS NOT NULL
AND (other.id IS NOT NULL OR named_at IS NOT NULL OR has_two_items OR has_two_keys)
ORDER BY line
""")
DELETE_ROWS = sa.text("""
DELETE FROM staged_items WHERE owner_id = :owner AND import_id = :import_id AND line = ANY (:lines)
""")
# Once the claims that lose are deleted, each claimed key is that of one item.
USE_ITEMS_OF_KEYS = sa.text("""
UPDATE staged_items AS row SET item_id = claim.item_id
FROM (
    SELECT DISTINCT item_id, external_id FROM staged_items
    WHERE owner_id = :owner AND import_id = :import_id AND item_id IS NOT NULL
) AS claim
WHERE row.owner_id = :owner AND row.import_id = :import_id
AND row.item_id IS NULL AND row.external_id = claim.external_id
""")
USE_KEYS_OF_ROWS_BEFORE = sa.text("""
UPDATE staged_items AS row SET external_id = claimed.external_id
FROM (
    SELECT line, max(external_id) OVER (PARTITION BY item_id ORDER BY line) AS external_id
    FROM staged_items
    WHERE owner_id = :owner AND import_id = :import_id AND item_id IS NOT NULL
) AS claimed
WHERE row.owner_id = :owner AND row.import_id = :import_id
AND row.line = claimed.line AND row.external_id IS DISTINCT FROM claimed.external_id
""")


async def resolve_ids(
    session: WriteSession, of_import: Mapping[str, UUID], *, lock: bool
) -> Mapping[int, str]:
    """Leaves an `item_id` only in the rows of items without an `external_id`, and in all of them;
    with `lock`, locks the items that rows name by their `id`.

    Returns why rows were rejected, by line.
    """
    await session.execute(SET_NESTED_LOOPS, {"allowed": "off"})
    if lock:
        await session.execute(LOCK_ITEMS, of_import)
    await session.execute(IGNORE_OTHER_IDS, of_import)
    await session.execute(IGNORE_IDS_AS_KEYS, of_import)
    other_keys = await session.fetch(REJECT_OTHER_KEYS, of_import)
    await session.execute(USE_KEYS_OF_ITEMS, of_import)
    rejected = _rejected_claims(await session.fetch(SELECT_CONTESTED_CLAIMS, of_import))
    await session.execute(DELETE_ROWS, {**of_import, "lines": list(rejected)})
    await session.execute(USE_ITEMS_OF_KEYS, of_import)
    await session.execute(USE_KEYS_OF_ROWS_BEFORE, of_import)
    await session.execute(SET_NESTED_LOOPS, {"allowed": "on"})
    return {row.line: HAS_ANOTHER_KEY for row in other_keys} | rejected


def _rejected_claims(claims: Iterable[Row]) -> dict[int, str]:
    """Gives each free key to the first row that claims it; returns why the others are rejected.

    In Python: whether a key is free depends on each claim before.
    """
    key_of: dict[UUID, str] = {}
    given: set[str] = set()
    rejected: dict[int, str] = {}
    for line, item_id, key, is_taken in claims:
        if item_id in key_of:
            if key_of[item_id] != key:
                rejected[line] = HAS_ANOTHER_KEY
        elif is_taken or key in given:
            rejected[line] = KEY_IS_TAKEN
        else:
            key_of[item_id] = key
            given.add(key)
    return rejected
