"""Merges the staged rows of an import into the items, in a few statements.

They are built from the fields of `ItemCreate`, each of which is a column of `items`. They have
no join: each row is compared with the row before it for the same item, and the first with the item
itself. PostgreSQL has no statistics of new rows, and might choose a nested loop for a join.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from asyncpg import UniqueViolationError

from features.items.changes import item_changes
from features.items.handlers.import_ids import resolve_ids
from features.items.handlers.staging import FIELDS
from shared.db import WriteSession
from shared.db.locks import advisory_lock
from shared.db.tables import later
from shared.problems import Conflict, Unavailable

KEY_TAKEN_MEANWHILE = "Another request has taken an external_id of the file; please send it again"
STATEMENT_SECONDS, LOCK_SECONDS = 600.0, 300.0
LOCK_IMPORTS = sa.text("SELECT pg_advisory_xact_lock(CAST(:key AS bigint))")

# A row without a key is compared with no other. The item itself is line 0.
COMPARE = """
WITH named AS MATERIALIZED (
    SELECT owner_id, line, id, {row_key} AS key, {fields} FROM staged_items
    WHERE owner_id = :owner AND import_id = :import_id AND {is_named}
), existing AS (
    SELECT owner_id, CAST(0 AS bigint) AS line, id, {item_key} AS key, {fields} FROM items
    WHERE owner_id = :owner AND {item_key} = ANY (ARRAY(SELECT key FROM named)) {lock}
), compared AS (
    SELECT *, lead(line) OVER same_item IS NULL AS is_last,
        lag(line) OVER same_item IS NULL AS creates,
        ({replaced}) IS DISTINCT FROM ({before}) AS changes,
        first_value(line) OVER same_item > 0 OR ({replaced}) IS DISTINCT FROM ({first}) AS differs
    FROM (SELECT * FROM existing UNION ALL SELECT * FROM named) AS lines
    WINDOW same_item AS (PARTITION BY key, CASE WHEN key IS NULL THEN line END ORDER BY line)
)
"""
# The counts are the same as if the rows were applied one by one. The items are locked, so that
# `CHANGE` finds them as they were counted.
COUNT = """
SELECT count(*) FILTER (WHERE creates) AS created,
    count(*) FILTER (WHERE NOT creates AND changes) AS updated,
    count(*) FILTER (WHERE NOT creates AND NOT changes) AS unchanged
FROM compared WHERE line > 0
"""
# A new row has one time in both columns; an update is later than the row was before.
CHANGE = """
INSERT INTO items (owner_id, id, {fields}, created_at, updated_at)
SELECT owner_id, {id}, {fields}, statement_timestamp(), statement_timestamp()
FROM compared WHERE line > 0 AND is_last AND differs ORDER BY line
ON CONFLICT (owner_id, {item_key}) DO UPDATE SET {set_replaced}, updated_at = {later}
RETURNING id, created_at = updated_at AS is_new
"""


@dataclass(frozen=True)
class _Statements:
    count: sa.TextClause
    lock_and_count: sa.TextClause
    change: sa.TextClause


def _statements(
    row_key: str, item_key: str, id_: str, is_named: str, replaced: Sequence[str]
) -> _Statements:
    """Returns the statements for the rows that name their item by the column `row_key`, which is
    `item_key` of the items."""
    parts = {
        "row_key": row_key,
        "item_key": item_key,
        "id": id_,
        "is_named": is_named,
        "fields": ", ".join(FIELDS),
        "replaced": ", ".join(replaced),
        "before": ", ".join(f"lag({name}) OVER same_item" for name in replaced),
        "first": ", ".join(f"first_value({name}) OVER same_item" for name in replaced),
        "set_replaced": ", ".join(f"{name} = excluded.{name}" for name in replaced),
        "later": later("excluded.updated_at", "items.updated_at"),
    }
    compare = COMPARE.format(**parts, lock="")
    lock = COMPARE.format(**parts, lock="FOR UPDATE")
    return _Statements(
        sa.text(compare + COUNT), sa.text(lock + COUNT), sa.text(compare + CHANGE.format(**parts))
    )


BY_KEY = _statements(
    row_key="external_id",
    item_key="external_id",
    id_="id",
    is_named="item_id IS NULL",
    replaced=[name for name in FIELDS if name != "external_id"],
)
BY_ID = _statements(
    row_key="item_id",
    item_key="id",
    id_="key",
    is_named="item_id IS NOT NULL",
    replaced=FIELDS,
)


async def merge_rows(
    session: WriteSession,
    owner_id: UUID,
    import_id: UUID,
    *,
    staged: int,
    has_ids: bool,
    dry_run: bool,
) -> tuple[Counter[str], Mapping[int, str]]:
    """Inserts the staged rows as items, or replaces the items that they name.

    `staged` is the number of rows; with `has_ids` some of them have an `id`. With `dry_run` nothing
    is changed, and no item is locked. Returns the number of rows by outcome, and why others were
    rejected, by line.

    Raises:
        Conflict: another request takes a key that a row gives to an item by its `id`.
        Unavailable: rows are missing, as PostgreSQL has failed over or crashed since.
    """
    of_import = {"owner": owner_id, "import_id": import_id}
    await session.allow(statement=STATEMENT_SECONDS, lock=LOCK_SECONDS)
    # Two imports that change the same items in different orders would deadlock.
    await session.execute(LOCK_IMPORTS, {"key": advisory_lock("items.import", owner_id)})
    rejected = await resolve_ids(session, of_import, lock=not dry_run) if has_ids else {}
    counts: Counter[str] = Counter()
    for statements in (BY_KEY, BY_ID) if has_ids else (BY_KEY,):
        count = statements.count if dry_run else statements.lock_and_count
        [found] = await session.fetch(count, of_import)
        counts.update(dict(found))
        if found.created + found.updated and not dry_run:
            try:
                changed = await session.fetch(statements.change, of_import)
            except UniqueViolationError as error:
                raise Conflict(KEY_TAKEN_MEANWHILE) from error
            created_ids = [row.id for row in changed if row.is_new]
            await item_changes.created(session, owner_id, created_ids)
            updated_ids = [row.id for row in changed if not row.is_new]
            await item_changes.updated(session, owner_id, updated_ids)
            # Keys that other requests have given to items since the rows were counted.
            taken = found.created - len(created_ids)
            counts.update(created=-taken, updated=taken)
    if counts.total() + len(rejected) != staged:
        raise Unavailable("The database was restarted during the import; please send it again")
    return counts, rejected
