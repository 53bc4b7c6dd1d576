"""The words of items, where no write of theirs brings the triggers to index them."""

import asyncio
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.database import Database
from shared.errors import Unavailable
from shared.locks import advisory_lock

BATCH = 500
WAIT_ATTEMPTS, WAIT_SECONDS = 1_200, 0.1
FIRST_ID = UUID(int=0)
LOCK_NOT_AVAILABLE = "55P03"

# One change of the language or of the models at a time.
LOCK = text(f"SELECT pg_advisory_xact_lock({advisory_lock('search.models')})")
NO_TIMEOUTS = text(
    "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)"
)

WRITERS = text("""
SELECT array_agg(DISTINCT virtualtransaction) FROM pg_locks
WHERE locktype = 'relation' AND relation = 'items'::regclass AND mode = 'RowExclusiveLock'
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
STILL_OPEN = text("SELECT EXISTS (SELECT FROM pg_locks WHERE virtualtransaction = ANY (:writers))")

# Each item is locked before it is read, so that what a writer commits meanwhile is not overwritten
# with what was there before. Whoever waits holds none, so that no writer runs into a deadlock.
INDEX = """
WITH locked AS MATERIALIZED (
    SELECT i.id FROM items AS i WHERE i.id > :after AND {condition}
    ORDER BY i.id LIMIT :batch FOR NO KEY UPDATE NOWAIT
)
SELECT ids[cardinality(ids)], search_index(ids)
FROM (SELECT array_agg(id ORDER BY id) AS ids FROM locked) AS batch WHERE ids IS NOT NULL
"""
INDEX_ALL = text(INDEX.format(condition="true"))
INDEX_MISSING = text(
    INDEX.format(condition="NOT EXISTS (SELECT FROM search_documents AS d WHERE d.item_id = i.id)")
)

LANGUAGE = text("SELECT obj_description('search'::regconfig::oid, 'pg_ts_config')")
SET_LANGUAGE = text("SELECT search_set_language(CAST(:language AS regconfig), :complete)")
FOLDED = text(f"SELECT pg_advisory_xact_lock({advisory_lock('search.statistics')})")
FORGET_WORDS = text("DELETE FROM search_words")


async def settle(database: Database) -> None:
    """Returns when all who write to items now have finished: who writes from then on sees what
    was committed before this was called.

    Raises:
        Unavailable: some have not after two minutes.
    """
    async with database.write.connect() as session:
        writers = (await session.execute(WRITERS)).scalar()
    for _ in range(WAIT_ATTEMPTS):
        async with database.write.connect() as session:
            if not (await session.execute(STILL_OPEN, {"writers": writers})).scalar():
                return
        await asyncio.sleep(WAIT_SECONDS)
    raise _too_long()


async def change_language(database: Database, language: str) -> None:
    """Indexes every item in this language, unless all are already.

    The language counts as changed when no item is left that was indexed in another one. A run
    that was cut off begins again.

    Raises:
        Unavailable: somebody has been writing to items for too long.
    """
    async with database.write.begin() as session:
        await session.execute(LOCK)
        if (await session.execute(LANGUAGE)).scalar() == language:
            return
        await _set_language(session, language, complete=False)
    await settle(database)
    async with database.write.begin() as session:
        await session.execute(NO_TIMEOUTS)
        await session.execute(FOLDED)  # nobody is about to add words in the language before
        await session.execute(FORGET_WORDS)
    await _index(database, INDEX_ALL)
    async with database.write.begin() as session:
        await _set_language(session, language, complete=True)


async def index_missing(database: Database) -> None:
    """Indexes the items that were there before the triggers.

    Raises:
        Unavailable: somebody has been writing to items for too long.
    """
    await _index(database, INDEX_MISSING)


async def _set_language(session: AsyncConnection, language: str, *, complete: bool) -> None:
    await session.execute(SET_LANGUAGE, {"language": language, "complete": complete})


async def _index(database: Database, statement: TextClause) -> None:
    after: UUID | None = FIRST_ID
    while after:
        after = await _index_batch(database, statement, after)


async def _index_batch(database: Database, statement: TextClause, after: UUID) -> UUID | None:
    """Indexes a batch of items, once nobody is writing to one of them.

    Returns:
        The last of them.
    """
    batch = {"after": after, "batch": BATCH}
    for _ in range(WAIT_ATTEMPTS):
        try:
            async with database.write.begin() as session:
                last: UUID | None = (await session.execute(statement, batch)).scalar()
                return last
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
        await asyncio.sleep(WAIT_SECONDS)
    raise _too_long()


def _too_long() -> Unavailable:
    seconds = round(WAIT_ATTEMPTS * WAIT_SECONDS)
    return Unavailable(
        f"A transaction has been writing to items for {seconds} s; try again when it has ended"
    )
