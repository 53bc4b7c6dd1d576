"""The staging table: where the rows of an import wait until all have come.

Each batch is copied in a separate transaction, so that none is open while a client is slow.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from uuid import UUID

from sqlalchemy import bindparam, delete, select

from features.items.formats.rows import Accepted
from features.items.schemas import ItemCreate
from features.items.tables import STAGED_ITEMS
from shared.db import Database, WriteSession
from shared.db.tables import first_uuid7, uuid7

FIELDS = tuple(ItemCreate.model_fields)
ABANDONED_AFTER = timedelta(days=1)  # no import takes as long
IMPORTS_PER_SWEEP = 100

_COLUMNS = ("owner_id", "import_id", "line", "id", "item_id", *FIELDS)
_values = attrgetter("item_id", *FIELDS)

IS_OF_IMPORT = (STAGED_ITEMS.c.owner_id == bindparam("owner")) & (
    STAGED_ITEMS.c.import_id == bindparam("import_id")
)
DELETE_STAGED = delete(STAGED_ITEMS).where(IS_OF_IMPORT)
SELECT_ABANDONED = (
    select(STAGED_ITEMS.c.owner_id, STAGED_ITEMS.c.import_id)
    .where(STAGED_ITEMS.c.import_id < bindparam("before"))
    .distinct()
    .limit(IMPORTS_PER_SWEEP)
)


async def stage_rows(
    session: WriteSession, owner_id: UUID, import_id: UUID, rows: Sequence[Accepted]
) -> None:
    """Copies rows of an import into the staging table."""
    records = [(owner_id, import_id, row.line, uuid7(), *_values(row.row)) for row in rows]
    await session.copy(STAGED_ITEMS.name, _COLUMNS, records)


async def delete_staged(session: WriteSession, owner_id: UUID, import_id: UUID) -> None:
    """Deletes the rows of an import from the staging table."""
    await session.execute(DELETE_STAGED, {"owner": owner_id, "import_id": import_id})


async def delete_abandoned_rows(database: Database) -> None:
    """Deletes the rows of imports whose process has died."""
    before = {"before": first_uuid7(datetime.now(UTC) - ABANDONED_AFTER)}
    async with database.transaction() as session:  # a replica has no UNLOGGED tables
        abandoned_imports = await session.fetch(SELECT_ABANDONED, before)
    for abandoned in abandoned_imports:
        async with database.transaction() as session:
            await delete_staged(session, abandoned.owner_id, abandoned.import_id)
