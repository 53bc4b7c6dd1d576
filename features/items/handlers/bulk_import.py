"""Import of a stream of rows: staged with COPY, then upserted by `external_id` in one statement.

The statements are built from the fields of `ImportRow`, each of which is a column of `items`.
"""

from operator import attrgetter
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from features.items.changes import item_changes
from features.items.formats.rows import Accepted, Rejected, RowBatches
from features.items.schemas import ImportReport, ImportRow, RowError
from features.items.tables import ITEMS
from shared.db import WriteSession
from shared.db.locks import advisory_lock
from shared.db.statements import DIALECT
from shared.db.tables import uuid7

MAX_ERRORS = 1_000
FIELDS = tuple(ImportRow.model_fields)
REPLACED_FIELDS = tuple(name for name in FIELDS if name != "external_id")

STAGED_ITEMS = sa.Table(
    "staged_items",
    sa.MetaData(),
    sa.Column("line", sa.BigInteger),
    *(sa.Column(name, ITEMS.c[name].type) for name in ("id", *FIELDS)),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)

# Of a row that ON CONFLICT has updated, xmax is this transaction.
IS_NEW: sa.ColumnElement[bool] = sa.literal_column("xmax = 0", sa.Boolean).label("is_new")
SET_TIMEOUTS = sa.text("""
SELECT set_config('statement_timeout', '10min', true), set_config('lock_timeout', '5min', true)
""")
CREATE_STAGED_ITEMS = sa.text(str(CreateTable(STAGED_ITEMS).compile(dialect=DIALECT)))
ANALYZE_STAGED_ITEMS = sa.text("ANALYZE staged_items")
LOCK_IMPORTS = sa.text("SELECT pg_advisory_xact_lock(CAST(:key AS bigint))")


def _over_same_item(function: sa.Function[Any]) -> sa.Over[Any]:
    """Applies a window function to the rows of the file with the same external_id, in order.

    Rows without an external_id are in windows of one row.
    """
    row = STAGED_ITEMS.c
    same_item = [row.external_id, sa.case((row.external_id.is_(None), row.line))]
    return function.over(partition_by=same_item, order_by=row.line)


def _compare_rows() -> sa.CTE:
    """Compares each row with the values that it replaces: those of an earlier row of the same file
    with the same external_id, or else of the item in the table.

    So the counts are the same as if the rows were applied one by one.
    """
    row, item = STAGED_ITEMS.c, ITEMS.c
    values = sa.tuple_(*(row[name] for name in REPLACED_FIELDS))
    item_values = sa.tuple_(*(item[name] for name in REPLACED_FIELDS))
    earlier_values = sa.tuple_(
        *(_over_same_item(sa.func.lag(row[name])) for name in REPLACED_FIELDS)
    )
    is_its_item = (item.owner_id == sa.bindparam("owner_id")) & (
        item.external_id == row.external_id
    )
    return (
        sa.select(
            STAGED_ITEMS,
            _over_same_item(sa.func.lead(row.line)).is_(None).label("is_last"),
            _over_same_item(sa.func.lag(row.line)).is_not(None).label("is_repeated"),
            item.id.is_(None).label("is_new"),
            values.is_distinct_from(item_values).label("differs_from_item"),
            values.is_distinct_from(earlier_values).label("differs_from_row"),
        )
        .join_from(STAGED_ITEMS, ITEMS, is_its_item, isouter=True)
        .cte("compared")
    )


def _count_changes(compared: sa.CTE) -> sa.Select[int, int, int]:
    row = compared.c
    creates = row.is_new & ~row.is_repeated
    differs = sa.case((row.is_repeated, row.differs_from_row), else_=row.differs_from_item)
    return sa.select(
        sa.func.count().filter(creates).label("created"),
        sa.func.count().filter(~creates, differs).label("updated"),
        sa.func.count().filter(~creates, ~differs).label("unchanged"),
    ).select_from(compared)


def _upsert_changes(compared: sa.CTE) -> sa.CTE:
    row = compared.c
    changes = (
        sa.select(row.id, sa.bindparam("owner_id"), *(row[name] for name in FIELDS))
        .where(row.is_last, row.is_new | row.differs_from_item)
        .order_by(row.line)
    )
    insert = postgresql.insert(ITEMS).from_select(["id", "owner_id", *FIELDS], changes)
    replaced = {name: insert.excluded[name] for name in REPLACED_FIELDS}
    upsert = insert.on_conflict_do_update(
        index_elements=[ITEMS.c.owner_id, ITEMS.c.external_id],
        set_={**replaced, "updated_at": sa.func.statement_timestamp()},
    )
    return upsert.returning(ITEMS.c.id, IS_NEW).cte("upserted")


def _upserted(condition: sa.ColumnElement[bool]) -> sa.ScalarSelect[Any]:
    return sa.select(sa.func.array_agg(UPSERTED_ITEMS.c.id)).where(condition).scalar_subquery()


COMPARED_ROWS = _compare_rows()
COUNT_CHANGES = _count_changes(COMPARED_ROWS)
UPSERTED_ITEMS = _upsert_changes(COMPARED_ROWS)
UPSERT_CHANGES = COUNT_CHANGES.add_columns(
    _upserted(UPSERTED_ITEMS.c.is_new).label("created_ids"),
    _upserted(~UPSERTED_ITEMS.c.is_new).label("updated_ids"),
)


async def import_items(
    session: WriteSession, owner_id: UUID, batches: RowBatches, *, dry_run: bool = False
) -> ImportReport:
    """Inserts the rows as items of the owner, or replaces items with the same `external_id`.

    Rows that are not valid are skipped and reported. With `dry_run` nothing is changed.
    """
    await session.execute(SET_TIMEOUTS)
    await session.execute(CREATE_STAGED_ITEMS)
    report = await _stage_rows(session, batches)
    await session.execute(ANALYZE_STAGED_ITEMS)
    # Two imports that change the same items in different orders would deadlock.
    await session.execute(LOCK_IMPORTS, {"key": advisory_lock("items.import", owner_id)})
    [found] = await session.fetch(
        COUNT_CHANGES if dry_run else UPSERT_CHANGES, {"owner_id": owner_id}
    )
    if not dry_run:
        await item_changes.created(session, owner_id, found.created_ids or ())
        await item_changes.updated(session, owner_id, found.updated_ids or ())
    counts = {name: found[name] for name in ("created", "updated", "unchanged")}
    return report.model_copy(update=counts)


async def _stage_rows(session: WriteSession, batches: RowBatches) -> ImportReport:
    """Copies the valid rows into the staging table, and returns a report of the others."""
    report = ImportReport()
    columns, values = STAGED_ITEMS.c.keys(), attrgetter(*FIELDS)
    async for batch in batches:
        accepted = [row for row in batch if isinstance(row, Accepted)]
        if accepted:
            records = [(each.line, uuid7(), *values(each.row)) for each in accepted]
            await session.copy(STAGED_ITEMS.name, columns, records)
        rejected = [row for row in batch if isinstance(row, Rejected)]
        report.rejected += len(rejected)
        room = MAX_ERRORS - len(report.errors)
        report.errors += [RowError(line=row.line, detail=row.detail) for row in rejected[:room]]
    return report
