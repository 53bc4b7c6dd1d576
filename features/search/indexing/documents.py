"""Indexes the words of existing items: after a change of language, and on the first start.

The triggers on `items` only index rows that are written.
"""

import asyncio
from uuid import UUID

from asyncpg import LockNotAvailableError
from sqlalchemy import TextClause, text

from shared.db import Database, WriteSession
from shared.db.locks import advisory_lock
from shared.problems import Unavailable

ITEMS_PER_BATCH = 500
WAIT_ATTEMPTS, WAIT_SECONDS = 1_200, 0.1
LOWEST_ID = UUID(int=0)

# Serialises changes of the language and of the models.
LOCK_MODELS = text(f"SELECT pg_advisory_xact_lock({advisory_lock('search.models')})")
DISABLE_TIMEOUTS = text(
    "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)"
)

SELECT_OPEN_WRITERS = text("""
SELECT array_agg(DISTINCT virtualtransaction) FROM pg_locks
WHERE locktype = 'relation' AND relation = 'items'::regclass AND mode = 'RowExclusiveLock'
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
HAS_OPEN_WRITERS = text(
    "SELECT EXISTS (SELECT FROM pg_locks WHERE virtualtransaction = ANY (:writers))"
)

# Locks each item before it reads it, so that it does not overwrite the index entry of a concurrent
# write with an older version. NOWAIT: a batch that meets a locked item fails, releases all of its
# locks and is tried again, so that it cannot deadlock with a writer.
INDEX_BATCH = """
WITH locked AS MATERIALIZED (
    SELECT i.id FROM items AS i WHERE i.id > :after AND {condition}
    ORDER BY i.id LIMIT :batch FOR NO KEY UPDATE NOWAIT
)
SELECT ids[cardinality(ids)], search_index(ids)
FROM (SELECT array_agg(id ORDER BY id) AS ids FROM locked) AS batch WHERE ids IS NOT NULL
"""
INDEX_ALL_ITEMS = text(INDEX_BATCH.format(condition="true"))
INDEX_MISSING_ITEMS = text(
    INDEX_BATCH.format(
        condition="NOT EXISTS (SELECT FROM search_documents AS d WHERE d.item_id = i.id)"
    )
)

SELECT_LANGUAGE = text("SELECT obj_description('search'::regconfig::oid, 'pg_ts_config')")
SET_LANGUAGE = text("SELECT search_set_language(CAST(:language AS regconfig), :complete)")
WAIT_FOR_STATISTICS = text(f"SELECT pg_advisory_xact_lock({advisory_lock('search.statistics')})")
DELETE_WORDS = text("DELETE FROM search_words")


async def wait_for_open_writers(database: Database) -> None:
    """Waits until every transaction that is writing to `items` now has ended.

    Every later write to `items` sees what was committed before this call.

    Raises:
        Unavailable: a transaction is still open after two minutes.
    """
    async with database.transaction() as session:
        writers = await session.fetch_value(SELECT_OPEN_WRITERS)
    for _ in range(WAIT_ATTEMPTS):
        async with database.transaction() as session:
            if not await session.fetch_value(HAS_OPEN_WRITERS, {"writers": writers}):
                return
        await asyncio.sleep(WAIT_SECONDS)
    raise _writer_still_open()


async def change_language(database: Database, language: str) -> None:
    """Indexes every item in this language, unless they all are already.

    The new language is recorded only after every item has been indexed in it, so that an
    interrupted run starts from the beginning.

    Raises:
        Unavailable: a transaction has been writing to `items` for more than two minutes.
    """
    async with database.transaction() as session:
        await session.execute(LOCK_MODELS)
        if await session.fetch_value(SELECT_LANGUAGE) == language:
            return
        await _set_language(session, language, complete=False)
    await wait_for_open_writers(database)
    async with database.transaction() as session:
        await session.execute(DISABLE_TIMEOUTS)
        await session.execute(
            WAIT_FOR_STATISTICS
        )  # a running update may insert words of the old language
        await session.execute(DELETE_WORDS)
    await _index(database, INDEX_ALL_ITEMS)
    async with database.transaction() as session:
        await _set_language(session, language, complete=True)


async def index_missing(database: Database) -> None:
    """Indexes the items that were written before the triggers existed.

    Raises:
        Unavailable: a transaction has been writing to `items` for more than two minutes.
    """
    await _index(database, INDEX_MISSING_ITEMS)


async def _set_language(session: WriteSession, language: str, *, complete: bool) -> None:
    await session.execute(SET_LANGUAGE, {"language": language, "complete": complete})


async def _index(database: Database, statement: TextClause) -> None:
    after: UUID | None = LOWEST_ID
    while after:
        after = await _index_batch(database, statement, after)


async def _index_batch(database: Database, statement: TextClause, after: UUID) -> UUID | None:
    """Indexes a batch of items; retries while another transaction has one of them locked.

    Returns:
        The id of the last item of the batch; None if no item is left.

    Raises:
        Unavailable: an item is still locked after two minutes.
    """
    batch = {"after": after, "batch": ITEMS_PER_BATCH}
    for _ in range(WAIT_ATTEMPTS):
        try:
            async with database.transaction() as session:
                last: UUID | None = await session.fetch_value(statement, batch)
                return last
        except LockNotAvailableError:
            pass
        await asyncio.sleep(WAIT_SECONDS)
    raise _writer_still_open()


def _writer_still_open() -> Unavailable:
    seconds = round(WAIT_ATTEMPTS * WAIT_SECONDS)
    return Unavailable(
        f"A transaction has been writing to items for {seconds} s; try again when it has ended"
    )
