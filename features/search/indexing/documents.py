"""Indexes the words of items: in the transaction that changes an item, or all of an owner's.

A writer marks the item in `search_pending`, for the statistics and the embeddings. It is one row an
item, so writers of different items never wait for each other. The statistics skip a mark that a
writer has locked: they would count the old words, delete the mark, and miss the new words.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID

import structlog
from asyncpg import LockNotAvailableError, PostgresError
from sqlalchemy import TextClause, text

from features.search.indexing.failed_batches import blames_rows, split
from features.search.query.ranking import BM25_B, BM25_K1, WEIGHTS_VERSION
from features.search.tables import (
    SearchDocument,
    SearchOwner,
    SearchPendingItem,
    SearchTerm,
    SearchWord,
)
from shared.db import Database, WriteSession
from shared.db.changes import Change, ChangeKind
from shared.db.locks import advisory_lock
from shared.db.pool import Row
from shared.db.tables import OWNED_ROWS_PER_BATCH, delete_owned_rows, table_of
from shared.problems import Unavailable

SEARCH_CHANNEL = "search"
ITEMS_PER_BATCH = 500
INDEXED_FIELDS = frozenset({"title", "description"})  # of which INDEX makes words
WAIT_ATTEMPTS, WAIT_SECONDS = 1_200, 0.1
Position: TypeAlias = dict[str, Any]
Statements: TypeAlias = Sequence[TextClause]
FIRST: Position = {"created_at": datetime.min.replace(tzinfo=UTC), "id": UUID(int=0)}
MAX_TERMS = 2_000
"""How many different words of an item are indexed: the first ones, those of the title included."""
WEIGHTS = {"k1": BM25_K1, "b": BM25_B, "version": WEIGHTS_VERSION}

log = structlog.get_logger(__name__)

# Serialises changes of the language and of the models.
LOCK_MODELS = text(f"SELECT pg_advisory_xact_lock({advisory_lock('search.models')})")
ALL_ROWS_SECONDS = 86_400.0  # for a statement on all rows, and its wait for a lock

SELECT_OPEN_WRITERS = text("""
SELECT array_agg(DISTINCT virtualtransaction) FROM pg_locks
WHERE locktype = 'relation' AND relation = CAST(:table AS regclass) AND mode = 'RowExclusiveLock'
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
HAS_OPEN_WRITERS = text(
    "SELECT EXISTS (SELECT FROM pg_locks WHERE virtualtransaction = ANY (:writers))"
)

SELECT_LANGUAGE = text("SELECT obj_description('search'::regconfig::oid, 'pg_ts_config')")
SET_LANGUAGE = text("SELECT search_set_language(CAST(:language AS regconfig), :complete)")
DELETE_WORDS = text("DELETE FROM search_words")

# A mark that has failed or is parked is tried again when its item changes.
MARK_ANEW = """(counted, attempts, next_attempt_at, parked, error)
    = (p.counted, 0, excluded.next_attempt_at, false, NULL)"""
CHANGED = """
FROM items AS i
LEFT JOIN search_documents AS d ON d.owner_id = :owner AND d.item_id = i.id
WHERE i.owner_id = :owner AND i.id = ANY (CAST(:ids AS uuid[])) AND {condition}
"""
MARK = f"""
INSERT INTO search_pending AS p (owner_id, item_id, counted)
SELECT i.owner_id, i.id, d.terms {CHANGED}
ON CONFLICT (owner_id, item_id) DO UPDATE SET {MARK_ANEW}
"""
# Subqueries, each computed once because of OFFSET 0, and no WITH: its result would go to every
# worker of a cluster, so all writes would fail while one is away.
INDEX = f"""
INSERT INTO search_documents
    (owner_id, item_id, terms, length, average_length, weights_version, weights, text_hash)
SELECT owner_id, id, terms || array_to_tsvector(ARRAY[search_owner_term(owner_id)]), length,
    average_length, CAST(:version AS smallint),
    search_weights(terms, length, average_length, :k1, :b), text_hash
FROM (
    SELECT *, greatest(1, coalesce(
        (SELECT o.length::real / nullif(o.documents, 0) FROM search_owners AS o
            WHERE o.owner_id = :owner),
        avg(length) OVER ()
    ))::real AS average_length
    FROM (
        SELECT *, search_length(terms) AS length FROM (
            SELECT owner_id, id, text_hash, CASE WHEN length(terms) <= :max_terms THEN terms ELSE
                ts_delete(terms, ARRAY(
                    SELECT lexeme FROM unnest(terms)
                    ORDER BY positions[1], lexeme OFFSET :max_terms))
                END AS terms
            FROM (
                SELECT i.owner_id, i.id, search_lexemes(i.title, i.description) AS terms,
                    search_text_hash(i.title, i.description) AS text_hash {CHANGED} OFFSET 0
            ) AS changed OFFSET 0
        ) AS kept OFFSET 0
    ) AS measured OFFSET 0
) AS averaged
ON CONFLICT (owner_id, item_id) DO UPDATE
    SET (terms, length, average_length, weights_version, weights, text_hash)
        = (excluded.terms, excluded.length, excluded.average_length, excluded.weights_version,
           excluded.weights, excluded.text_hash)
"""  # noqa: S608  # constants
HAS_ANOTHER_TEXT = "d.text_hash IS DISTINCT FROM search_text_hash(i.title, i.description)"
INDEX_ALL, INDEX_CHANGED = (
    tuple(text(each.format(condition=condition)) for each in (MARK, INDEX))
    for condition in ("true", HAS_ANOTHER_TEXT)
)

FORGET_ITEMS = [
    text(f"""
INSERT INTO search_pending AS p (owner_id, item_id, counted)
SELECT owner_id, item_id, terms FROM search_documents
WHERE owner_id = :owner AND item_id = ANY (CAST(:ids AS uuid[]))
ON CONFLICT (owner_id, item_id) DO UPDATE SET {MARK_ANEW}
"""),  # noqa: S608  # a constant
    text("""
DELETE FROM search_documents
WHERE owner_id = :owner AND item_id = ANY (CAST(:ids AS uuid[]))
"""),
]
SELECT_ITEMS = text("""
WITH page AS MATERIALIZED (
    SELECT id, created_at, title, description FROM items
    WHERE owner_id = :owner AND (created_at, id) > (:created_at, :id)
    ORDER BY created_at, id LIMIT :batch
)
SELECT page.id, page.created_at,
    d.text_hash IS DISTINCT FROM search_text_hash(page.title, page.description) AS changed
FROM page LEFT JOIN search_documents AS d ON d.owner_id = :owner AND d.item_id = page.id
ORDER BY page.created_at, page.id
""")
# An item is locked before it is read, so that its index entry is not overwritten with an older
# version. NOWAIT: a batch that meets a locked item fails, releases all of its locks and is tried
# again, so that it cannot deadlock with a writer.
LOCK_ITEMS = text("""
SELECT id FROM items WHERE owner_id = :owner AND id = ANY (CAST(:ids AS uuid[]))
FOR NO KEY UPDATE NOWAIT
""")
SELECT_OWNERS = text("""
SELECT DISTINCT owner_id FROM items UNION SELECT DISTINCT owner_id FROM search_documents
""")
SELECT_ORPHANS = text("""
SELECT d.item_id FROM search_documents AS d
WHERE d.owner_id = :owner AND NOT EXISTS (
    SELECT FROM items AS i WHERE i.owner_id = :owner AND i.id = d.item_id)
LIMIT :batch
""")
FORGOTTEN_TABLES = [
    table_of(model)
    for model in (SearchPendingItem, SearchDocument, SearchWord, SearchTerm, SearchOwner)
]
# Skips the row of an item that is being embedded: the process that embeds it deletes it. Two
# statements, and a join by item in none (see CLAIM_ITEMS in statistics.py).
LOCK_QUEUE = text("""
SELECT item_id, model_id FROM search_queue WHERE owner_id = :owner
LIMIT :batch FOR UPDATE SKIP LOCKED
""")
DELETE_QUEUE = text("""
DELETE FROM search_queue
WHERE owner_id = :owner AND item_id = ANY (CAST(:ids AS uuid[])) AND model_id = :model
""")


class ItemsLocked(Unavailable):
    """A transaction has had items of an owner locked for too long."""


async def index_change(session: WriteSession, change: Change) -> None:
    """Indexes items that have changed, in the transaction that has changed them."""
    if change.kind is ChangeKind.DELETED:
        await forget_items(session, change.owner_id, change.ids)
    elif change.fields is None or not INDEXED_FIELDS.isdisjoint(change.fields):
        await index_items(session, change.owner_id, change.ids)


async def index_items(session: WriteSession, owner_id: UUID, ids: Sequence[UUID]) -> None:
    """Indexes those items whose text differs from the indexed text."""
    await _index(session, INDEX_CHANGED, owner_id, ids)
    session.notify(SEARCH_CHANNEL)


async def forget_items(session: WriteSession, owner_id: UUID, ids: Sequence[UUID]) -> None:
    for statement in FORGET_ITEMS:
        await session.execute(statement, {"owner": owner_id, "ids": ids})
    session.notify(SEARCH_CHANNEL)


async def forget_account(session: WriteSession, change: Change) -> int:
    """Deletes a batch of the rows of a deleted account; returns how many, 0 once none is left."""
    of = {"owner": change.owner_id, "batch": OWNED_ROWS_PER_BATCH}
    rows = [await delete_owned_rows(session, each, change.owner_id) for each in FORGOTTEN_TABLES]
    idle = await session.fetch(LOCK_QUEUE, of)
    for model in dict.fromkeys(row.model_id for row in idle):
        ids = [row.item_id for row in idle if row.model_id == model]
        await session.execute(DELETE_QUEUE, {"owner": change.owner_id, "model": model, "ids": ids})
    return sum(rows) + len(idle)


async def sweep(database: Database) -> int:
    """Brings the index into step with the items, however they were changed.

    It reads all items without locks, and locks those whose text is not the indexed text.

    Returns:
        How many documents were written or deleted.

    Raises:
        Unavailable: an item has been locked by a transaction for more than two minutes.
    """
    return await _index_all(database, INDEX_CHANGED)


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
    await wait_for_open_writers(database, "items")
    await wait_for_open_writers(database, "search_words")
    async with database.transaction() as session:
        await session.allow(statement=ALL_ROWS_SECONDS, lock=ALL_ROWS_SECONDS)
        await session.execute(DELETE_WORDS)
    await _index_all(database, INDEX_ALL)
    async with database.transaction() as session:
        await _set_language(session, language, complete=True)


async def wait_for_open_writers(database: Database, table: str) -> None:
    """Waits until every transaction that is writing to the table now has ended.

    Every later write to it sees all that had been committed before this call. A replica would not
    know.

    Raises:
        Unavailable: a transaction is still open after two minutes.
    """
    async with database.transaction() as session:
        writers = await session.fetch_value(SELECT_OPEN_WRITERS, {"table": table})
    for _ in range(WAIT_ATTEMPTS):
        async with database.transaction() as session:
            if not await session.fetch_value(HAS_OPEN_WRITERS, {"writers": writers}):
                return
        await asyncio.sleep(WAIT_SECONDS)
    raise Unavailable(_still_open(table))


async def _set_language(session: WriteSession, language: str, *, complete: bool) -> None:
    await session.execute(SET_LANGUAGE, {"language": language, "complete": complete})


async def _index_all(database: Database, statements: Statements) -> int:
    """Indexes the items of all owners; returns how many documents it wrote or deleted.

    Raises:
        Unavailable: items of an owner are still locked after two minutes; those of the others
            have been indexed.
    """
    async with database.transaction() as session:
        owners = [row.owner_id for row in await session.fetch(SELECT_OWNERS)]
    done, locked = 0, None
    for owner_id in owners:
        try:
            done += await _index_owner(database, statements, owner_id)
        except ItemsLocked as error:
            locked = error
    if locked:
        raise locked
    return done


async def _index_owner(database: Database, statements: Statements, owner_id: UUID) -> int:
    done, after = 0, FIRST
    of = {"owner": owner_id, "batch": ITEMS_PER_BATCH}
    while rows := await _select(database, SELECT_ITEMS, of | after):
        ids = [row.id for row in rows if row.changed or statements is INDEX_ALL]
        done += await _index_batch(database, statements, owner_id, ids)
        after = {"created_at": rows[-1].created_at, "id": rows[-1].id}
    while orphans := await _select(database, SELECT_ORPHANS, of):
        async with database.transaction() as session:
            await forget_items(session, owner_id, [row.item_id for row in orphans])
        done += len(orphans)
    return done


async def _select(database: Database, statement: TextClause, page: Position) -> list[Row]:
    async with database.transaction() as session:  # of the primary: a replica may lag
        return await session.fetch(statement, page)


async def _index_batch(
    database: Database, statements: Statements, owner_id: UUID, ids: Sequence[UUID]
) -> int:
    """Indexes items, and returns how many. If a batch fails because of its rows, its parts are
    tried separately; an item that fails alone is left out, and logged."""
    try:
        return await _index_locked(database, statements, owner_id, ids)
    except PostgresError as error:
        if not blames_rows(error):
            raise
        if len(ids) == 1:
            log.exception("item_not_indexed", item_id=str(ids[0]))
            return 0
    parts = split(ids)
    return sum([await _index_batch(database, statements, owner_id, part) for part in parts])


async def _index_locked(
    database: Database, statements: Statements, owner_id: UUID, ids: Sequence[UUID]
) -> int:
    """Indexes items, once no other transaction has one of them locked; returns how many it did.

    Raises:
        ItemsLocked: an item is still locked after two minutes.
    """
    if not ids:
        return 0
    for _ in range(WAIT_ATTEMPTS):
        try:
            async with database.transaction() as session:
                await session.fetch(LOCK_ITEMS, {"owner": owner_id, "ids": ids})
                session.notify(SEARCH_CHANNEL)
                return await _index(session, statements, owner_id, ids)
        except LockNotAvailableError:
            pass
        await asyncio.sleep(WAIT_SECONDS)
    raise ItemsLocked(_still_open("items"))


def _still_open(table: str) -> str:
    seconds = round(WAIT_ATTEMPTS * WAIT_SECONDS)
    return f"A transaction has been writing to {table} for {seconds} s; try again when it has ended"


async def _index(
    session: WriteSession, statements: Statements, owner_id: UUID, ids: Sequence[UUID]
) -> int:
    """Marks the items, then writes their documents; returns how many."""
    values = {"owner": owner_id, "ids": ids, "max_terms": MAX_TERMS, **WEIGHTS}
    return [await session.execute(statement, values) for statement in statements][-1]
