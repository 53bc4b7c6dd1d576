"""Import of a stream of rows: staged as they come, then merged in one transaction."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from uuid import UUID

from asyncpg import PostgresError

from features.items.formats.rows import Accepted, Rejected, RowBatches
from features.items.handlers.merging import merge_rows
from features.items.handlers.staging import delete_staged, stage_rows
from features.items.quota import Quota, text_bytes_of
from features.items.schemas import ImportReport, RowError
from shared.db import Database, WriteSession
from shared.db.tables import uuid7
from shared.problems import Problem

MAX_ERRORS = 1_000
STAGED_ROWS = 1_000
STAGED_CHARACTERS = 1_000_000


async def import_items(
    database: Database,
    owner_id: UUID,
    batches: RowBatches,
    *,
    dry_run: bool = False,
    quota: Quota | None = None,
    confirm_access: Callable[[WriteSession], Awaitable[None]] | None = None,
) -> ImportReport:
    """Inserts the rows as items of the owner, or replaces the items that they name.

    Rows that are not valid are skipped and reported. With `dry_run` nothing is changed. No
    transaction is open while the rows come; `confirm_access` is the last call in the one that
    merges them.

    Raises:
        Conflict: another request takes a key that a row gives to an item by its `id`.
        Forbidden: the account would have more than it may.
        Unavailable: PostgreSQL has failed over or crashed during the import.
    """
    import_id, report, staged, text_bytes, has_ids = uuid7(), ImportReport(), 0, 0, False
    try:
        async for rows in _group(batches, report):
            async with database.transaction() as session:
                await stage_rows(session, owner_id, import_id, rows)
            staged += len(rows)
            text_bytes += sum(text_bytes_of(row.row) for row in rows)
            has_ids |= any(row.row.item_id for row in rows)
        async with database.long_transaction() as session:
            counts, rejected = await merge_rows(
                session, owner_id, import_id, staged=staged, has_ids=has_ids, dry_run=dry_run
            )
            if quota and not dry_run:
                created = counts["created"]
                await quota.check(session, owner_id, items=created, text_bytes=text_bytes)
            if confirm_access:
                await confirm_access(session)
    finally:
        with suppress(Problem, PostgresError):  # the import is done; else a task deletes them
            async with database.transaction() as session:
                await delete_staged(session, owner_id, import_id)
    errors = [RowError(line=line, detail=detail) for line, detail in rejected.items()]
    return report.model_copy(
        update={
            **counts,
            "rejected": report.rejected + len(rejected),
            "errors": sorted([*report.errors, *errors], key=lambda error: error.line)[:MAX_ERRORS],
        }
    )


async def _group(batches: RowBatches, report: ImportReport) -> AsyncIterator[Sequence[Accepted]]:
    """Yields the valid rows, many at a time, and adds the others to the report."""
    group: list[Accepted] = []
    characters = 0
    async for batch in batches:
        accepted = [row for row in batch if isinstance(row, Accepted)]
        rejected = [row for row in batch if isinstance(row, Rejected)]
        report.rejected += len(rejected)
        room = MAX_ERRORS - len(report.errors)
        report.errors += [RowError(line=row.line, detail=row.detail) for row in rejected[:room]]
        group += accepted
        characters += sum(len(row.row.title) + len(row.row.description or "") for row in accepted)
        if len(group) >= STAGED_ROWS or characters >= STAGED_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group
