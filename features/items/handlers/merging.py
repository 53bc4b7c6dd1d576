"""Merges the staged rows of an import into the items, in a few statements.

They are built from the fields of `ItemCreate`, each of which is a column of `items`. They work on a
temporary copy of the rows, which PostgreSQL can analyse, and which may be changed.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from features.items.changes import item_changes
from features.items.handlers.import_ids import resolve_ids
from features.items.handlers.staging import FIELDS
from features.items.tables import ITEMS, STAGED_ITEMS
from shared.db import WriteSession
from shared.db.locks import advisory_lock
from shared.db.tables import UpdateTime
from shared.problems import Unavailable

REPLACED_FIELDS = tuple(name for name in FIELDS if name != "external_id")

IMPORT_ROWS = sa.Table(
    "import_rows",
    sa.MetaData(),
    *(sa.Column(name, STAGED_ITEMS.c[name].type) for name in ("line", "id", "item_id", *FIELDS)),
)

# Of a row that ON CONFLICT has updated, xmax is this transaction.
IS_NEW: sa.ColumnElement[bool] = sa.literal_column("xmax = 0", sa.Boolean).label("is_new")
SET_TIMEOUTS = sa.text("""
SELECT set_config('statement_timeout', '10min', true), set_config('lock_timeout', '5min', true)
""")
LOCK_IMPORTS = sa.text("SELECT pg_advisory_xact_lock(CAST(:key AS bigint))")
COPY_STAGED = sa.text("""
CREATE TEMPORARY TABLE import_rows ON COMMIT DROP AS
SELECT * FROM staged_items WHERE owner_id = :owner AND import_id = :import_id
""")
ANALYZE_IMPORT_ROWS = sa.text("ANALYZE import_rows")

HAS_KEY = IMPORT_ROWS.c.item_id.is_(None)
SAME_KEY = (
    IMPORT_ROWS.c.external_id,
    sa.case((IMPORT_ROWS.c.external_id.is_(None), IMPORT_ROWS.c.line)),
)
"""Rows without an external_id are in windows of one row."""


def _compare_rows(
    rows: sa.ColumnElement[bool],
    is_its_item: sa.ColumnElement[bool],
    same_item: tuple[sa.ColumnElement[Any], ...],
    fields: tuple[str, ...],
) -> sa.CTE:
    """Compares each of these rows with the values that it replaces: those of an earlier row of the
    file for the same item, or else of the item in the table.

    So the counts are the same as if the rows were applied one by one.
    """
    row, item = IMPORT_ROWS.c, ITEMS.c

    def over_same_item(function: sa.Function[Any]) -> sa.Over[Any]:
        return function.over(partition_by=same_item, order_by=row.line)

    values = sa.tuple_(*(row[name] for name in fields))
    item_values = sa.tuple_(*(item[name] for name in fields))
    earlier_values = sa.tuple_(*(over_same_item(sa.func.lag(row[name])) for name in fields))
    return (
        sa.select(
            IMPORT_ROWS,
            over_same_item(sa.func.lead(row.line)).is_(None).label("is_last"),
            over_same_item(sa.func.lag(row.line)).is_not(None).label("is_repeated"),
            item.id.is_(None).label("is_new"),
            values.is_distinct_from(item_values).label("differs_from_item"),
            values.is_distinct_from(earlier_values).label("differs_from_row"),
        )
        .join_from(
            IMPORT_ROWS,
            ITEMS,
            (item.owner_id == sa.bindparam("owner")) & is_its_item,
            isouter=True,
        )
        .where(rows)
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


def _upsert_changes(compared: sa.CTE) -> sa.Executable:
    row = compared.c
    changes = (
        sa.select(row.id, sa.bindparam("owner"), *(row[name] for name in FIELDS))
        .where(row.is_last, row.is_new | row.differs_from_item)
        .order_by(row.line)
    )
    insert = postgresql.insert(ITEMS).from_select(["id", "owner_id", *FIELDS], changes)
    replaced = {name: insert.excluded[name] for name in REPLACED_FIELDS}
    upsert = insert.on_conflict_do_update(
        index_elements=[ITEMS.c.owner_id, ITEMS.c.external_id],
        set_={**replaced, "updated_at": UpdateTime()},
    )
    return upsert.returning(ITEMS.c.id, IS_NEW)


def _update_changes(compared: sa.CTE) -> sa.Executable:
    row = compared.c
    update = (
        sa.update(ITEMS)
        .values({name: row[name] for name in FIELDS})
        .where(
            ITEMS.c.owner_id == sa.bindparam("owner"),
            ITEMS.c.id == row.item_id,
            row.is_last,
            row.differs_from_item,
        )
    )
    return update.returning(ITEMS.c.id, sa.false().label("is_new"))


_BY_KEY = _compare_rows(
    HAS_KEY, ITEMS.c.external_id == IMPORT_ROWS.c.external_id, SAME_KEY, REPLACED_FIELDS
)
COUNT_BY_KEY = _count_changes(_BY_KEY)
UPSERT_BY_KEY = _upsert_changes(_BY_KEY)

_BY_ID = _compare_rows(
    ~HAS_KEY, ITEMS.c.id == IMPORT_ROWS.c.item_id, (IMPORT_ROWS.c.item_id,), FIELDS
)
COUNT_BY_ID = _count_changes(_BY_ID)
UPDATE_BY_ID = _update_changes(_BY_ID)


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
    is changed. Returns the number of rows by outcome, and why others were rejected, by line.

    Raises:
        Unavailable: rows are missing, as PostgreSQL has failed over or crashed since.
    """
    of_import = {"owner": owner_id, "import_id": import_id}
    await session.execute(SET_TIMEOUTS)
    # Two imports that change the same items in different orders would deadlock.
    await session.execute(LOCK_IMPORTS, {"key": advisory_lock("items.import", owner_id)})
    if await session.execute(COPY_STAGED, of_import) != staged:
        raise Unavailable("The database was restarted during the import; please send it again")
    await session.execute(ANALYZE_IMPORT_ROWS)
    rejected = await resolve_ids(session, owner_id) if has_ids else {}
    counts: Counter[str] = Counter()
    statements = [(COUNT_BY_KEY, UPSERT_BY_KEY), (COUNT_BY_ID, UPDATE_BY_ID)]
    for count, change in statements if has_ids else statements[:1]:
        [found] = await session.fetch(count, of_import)
        counts.update(dict(found))
        if not dry_run:
            changed = await session.fetch(change, of_import)
            created_ids = [row.id for row in changed if row.is_new]
            await item_changes.created(session, owner_id, created_ids)
            updated_ids = [row.id for row in changed if not row.is_new]
            await item_changes.updated(session, owner_id, updated_ids)
    return counts, rejected
