"""Import of a stream of rows: staged with COPY, then upserted by `external_id` in one statement."""

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from features.items.formats import Accepted, Rejected
from features.items.schemas import ImportReport, RowError
from shared.db import WriteSession
from shared.db.locks import advisory_lock
from shared.db.tables import uuid7

MAX_ERRORS = 1_000
LIMITS = text("""
SELECT set_config('statement_timeout', '10min', true), set_config('lock_timeout', '5min', true)
""")
STAGED = ("line", "id", "external_id", "title", "description", "price")

STAGING_TABLE = text("""
CREATE TEMPORARY TABLE staged_items (
    line bigint, id uuid, external_id text, title text, description text, price numeric(12, 2)
) ON COMMIT DROP
""")
ANALYZE = text("ANALYZE staged_items")
LOCK = text("SELECT pg_advisory_xact_lock(CAST(:key AS bigint))")

# Each row is compared with the values that it replaces: those of an earlier row of the same file
# with the same external_id, or else of the item in the table. So the counts are the same as if the
# rows were applied one by one.
COMPARED = """
WITH compared AS (
    SELECT staged.*,
           lead(staged.line) OVER same_item IS NULL AS is_last,
           item.id IS NULL AS is_new,
           (item.title, item.description, item.price)
               IS DISTINCT FROM (staged.title, staged.description, staged.price) AS differs,
           lag(staged.line) OVER same_item IS NOT NULL AS repeats,
           (lag(staged.title) OVER same_item, lag(staged.description) OVER same_item,
            lag(staged.price) OVER same_item)
               IS DISTINCT FROM (staged.title, staged.description, staged.price) AS differs_from_row
    FROM staged_items AS staged
    LEFT JOIN items AS item
        ON item.owner_id = :owner_id AND item.external_id = staged.external_id
    WINDOW same_item AS (
        PARTITION BY staged.external_id, CASE WHEN staged.external_id IS NULL THEN staged.line END
        ORDER BY staged.line
    )
)
"""
COUNTS = """
SELECT count(*) FILTER (WHERE is_new AND NOT repeats) AS created,
       count(*) FILTER (WHERE CASE WHEN repeats THEN differs_from_row
                                   ELSE differs AND NOT is_new END) AS updated,
       count(*) FILTER (WHERE CASE WHEN repeats THEN NOT differs_from_row
                                   ELSE NOT differs AND NOT is_new END) AS unchanged
FROM compared
"""
UPSERT = """
, upserted AS (
    INSERT INTO items (id, owner_id, external_id, title, description, price)
    SELECT id, :owner_id, external_id, title, description, price
    FROM compared
    WHERE is_last AND (is_new OR differs)
    ORDER BY line
    ON CONFLICT (owner_id, external_id) DO UPDATE
        SET title = excluded.title, description = excluded.description, price = excluded.price,
            updated_at = clock_timestamp()
)
"""

MERGE = text(COMPARED + UPSERT + COUNTS)
DRY_RUN = text(COMPARED + COUNTS)


async def import_items(
    session: WriteSession,
    owner_id: UUID,
    batches: AsyncIterator[Sequence[Accepted | Rejected]],
    *,
    dry_run: bool = False,
) -> ImportReport:
    """Inserts the rows as items of the owner, or replaces items with the same `external_id`.

    Rows that are not valid are skipped and reported. With `dry_run` nothing is changed.
    """
    await session.execute(LIMITS)
    await session.execute(STAGING_TABLE)
    report = await _stage(session, batches)
    await session.execute(ANALYZE)
    # Two imports that change the same items in different orders would deadlock.
    await session.execute(LOCK, {"key": advisory_lock("items.import", owner_id)})
    [counts] = await session.fetch(DRY_RUN if dry_run else MERGE, {"owner_id": owner_id})
    return report.model_copy(update=dict(counts))


async def _stage(
    session: WriteSession, batches: AsyncIterator[Sequence[Accepted | Rejected]]
) -> ImportReport:
    """Copies the valid rows into the staging table, and returns a report of the others."""
    report = ImportReport()
    async for batch in batches:
        records = [_record(row) for row in batch if isinstance(row, Accepted)]
        if records:
            await session.copy("staged_items", STAGED, records)
        rejected = [row for row in batch if isinstance(row, Rejected)]
        report.rejected += len(rejected)
        room = MAX_ERRORS - len(report.errors)
        report.errors += [RowError(line=row.line, detail=row.detail) for row in rejected[:room]]
    return report


def _record(accepted: Accepted) -> tuple[Any, ...]:
    row = accepted.row
    return (accepted.line, uuid7(), row.external_id, row.title, row.description, row.price)
