"""Maintains the statistics that BM25 needs, per owner: documents, lengths, and terms.

Writers mark the items that they have changed; one process at a time counts those of an owner. So
writers that share a common word do not wait for each other, at the price of statistics that lag
slightly.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from asyncpg import PostgresError
from sqlalchemy import text

from features.search.indexing.documents import SEARCH_CHANNEL, WEIGHTS
from features.search.indexing.failed_batches import blames_rows, run_parts, split, take
from shared.db import Database, Row, WriteSession
from shared.db.locks import advisory_lock
from shared.db.owners import OwnersInTurn

ITEMS_PER_BATCH = 1_000
WORDS_PER_BATCH = 25_000  # which take about a second
WEIGHTS_PER_BATCH = (500, 50, 5)  # the next smaller where a batch takes too long
OWNERS_PER_PASS = 16
FIRST_RETRY_DELAY = timedelta(seconds=2)  # doubles with each attempt
MAX_ATTEMPTS = 12  # over about an hour, then a mark is parked

log = structlog.get_logger(__name__)

SELECT_OUTDATED_OWNERS = text("""
SELECT owner_id FROM search_owners WHERE weights_version < :version LIMIT :batch
""")
MARK_OUTDATED_OWNER = text("""
UPDATE search_owners SET stale = true, weights_version = :version
WHERE owner_id = :owner AND weights_version < :version
""")
CHANGED_OWNERS = OwnersInTurn(
    "search_pending", "NOT t.parked AND t.next_attempt_at <= statement_timestamp()"
)
STALE_OWNERS = OwnersInTurn("search_owners", "t.stale")

# One process at a time: two that update the same terms in a different order would deadlock.
TRY_LOCK_OWNER = text("SELECT pg_try_advisory_xact_lock(CAST(:key AS bigint))")

# The latest change comes first: it does not wait for an import of its owner. Rows that a writer has
# locked are skipped. The statements after this one see all that was committed before it, and so the
# words of the marked items.
#
# Here and below, no statement joins tables by item, and each reads all items of a batch at once:
# while the planner's statistics are from before an import, it expects one item of the owner, and
# would read all of them for each item of the batch.
CLAIM_ITEMS = text("""
SELECT item_id, attempts, coalesce(length(counted), 0) AS counted FROM search_pending
WHERE owner_id = :owner AND NOT parked AND next_attempt_at <= statement_timestamp()
AND (attempts > 0) = :again
AND (CAST(:among AS uuid[]) IS NULL OR item_id = ANY (CAST(:among AS uuid[])))
ORDER BY next_attempt_at DESC LIMIT :batch FOR UPDATE SKIP LOCKED
""")
SELECT_LENGTHS = text("""
SELECT item_id, length FROM search_documents
WHERE owner_id = :owner AND item_id = ANY (CAST(:ids AS uuid[]))
""")

# Exponential backoff. A mark that has changed meanwhile has no attempts, and starts again.
SCHEDULE_RETRY = text("""
UPDATE search_pending SET attempts = attempts + 1, error = :error,
    parked = attempts + 1 >= :max_attempts,
    next_attempt_at = statement_timestamp() + CAST(:pause AS interval)
WHERE owner_id = :owner AND item_id = :item AND attempts = :attempts
""")

COUNT_DOCUMENTS = text("""
INSERT INTO search_owners AS o (owner_id, documents, length, weights_version)
SELECT :owner, sum(documents), sum(length), CAST(:version AS smallint)
FROM (
    SELECT count(*) AS documents, coalesce(sum(d.length), 0) AS length FROM search_documents AS d
    WHERE d.owner_id = :owner AND d.item_id = ANY (CAST(:ids AS uuid[]))
    UNION ALL
    SELECT -count(p.counted), -coalesce(sum(search_length(p.counted)), 0) FROM search_pending AS p
    WHERE p.owner_id = :owner AND p.item_id = ANY (CAST(:ids AS uuid[]))
) AS signed
ON CONFLICT (owner_id) DO UPDATE
    SET documents = o.documents + excluded.documents, length = o.length + excluded.length
""")
COUNT_TERMS = text("""
INSERT INTO search_terms AS t (owner_id, lexeme, documents)
SELECT :owner, lexeme, sum(sign)
FROM (
    SELECT unnest(tsvector_to_array(d.terms)) AS lexeme, 1 AS sign FROM search_documents AS d
    WHERE d.owner_id = :owner AND d.item_id = ANY (CAST(:ids AS uuid[]))
    UNION ALL
    SELECT unnest(tsvector_to_array(p.counted)), -1 FROM search_pending AS p
    WHERE p.owner_id = :owner AND p.item_id = ANY (CAST(:ids AS uuid[]))
) AS signed
WHERE lexeme <> search_owner_term(:owner)
GROUP BY lexeme HAVING sum(sign) <> 0
ON CONFLICT (owner_id, lexeme) DO UPDATE SET documents = t.documents + excluded.documents
""")
# Only terms that were counted before can be gone.
DELETE_TERMS = text("""
DELETE FROM search_terms
WHERE owner_id = :owner AND documents <= 0 AND lexeme = ANY (ARRAY(
    SELECT unnest(tsvector_to_array(p.counted)) FROM search_pending AS p
    WHERE p.owner_id = :owner AND p.item_id = ANY (CAST(:ids AS uuid[]))
))
RETURNING lexeme
""")
DELETE_WORDS = text("""
DELETE FROM search_words WHERE owner_id = :owner AND lexeme = ANY (CAST(:lexemes AS text[]))
""")

# Scalar subqueries, which read one row of an index for each word: the planner joins tables whose
# statistics are from before an import in ways that take the square of its words.
INSERT_WORDS = text("""
WITH spelt AS (
    SELECT DISTINCT unnest(tsvector_to_array(
        to_tsvector('simple', search_plain(i.title || ' ' || coalesce(i.description, ''))))) AS word
    FROM items AS i WHERE i.owner_id = :owner AND i.id = ANY (CAST(:ids AS uuid[]))
)
INSERT INTO search_words (owner_id, word, lexeme)
SELECT :owner, word, lexemes[1]
FROM (
    SELECT word, tsvector_to_array(to_tsvector('search', word)) AS lexemes
    FROM spelt
    WHERE length(word) BETWEEN 2 AND 64 AND (
        SELECT w.word FROM search_words AS w WHERE w.owner_id = :owner AND w.word = spelt.word
    ) IS NULL
) AS unseen
WHERE cardinality(lexemes) = 1 AND (
    SELECT t.documents FROM search_terms AS t WHERE t.owner_id = :owner AND t.lexeme = lexemes[1]
) IS NOT NULL
ON CONFLICT DO NOTHING
""")
# The latest change is embedded first. A row that is being embedded is locked, and stays as it
# is: its hash will not match.
ENQUEUE_ITEMS = text("""
INSERT INTO search_queue (owner_id, item_id, model_id, next_attempt_at)
SELECT :owner, item_id, model_id, (
    SELECT p.next_attempt_at FROM search_pending AS p
    WHERE p.owner_id = :owner AND p.item_id = wanted.item_id)
FROM (
    SELECT d.item_id, m.id AS model_id, d.text_hash
    FROM search_documents AS d CROSS JOIN search_models AS m
    WHERE d.owner_id = :owner AND d.item_id = ANY (CAST(:ids AS uuid[]))
    EXCEPT
    SELECT e.item_id, e.model_id, e.text_hash FROM search_embeddings AS e
    WHERE e.owner_id = :owner AND e.item_id = ANY (CAST(:ids AS uuid[]))
) AS wanted
ON CONFLICT (owner_id, item_id, model_id) DO NOTHING
""")
LOCK_CHANGED_ENTRIES = text("""
SELECT q.item_id, q.model_id FROM search_queue AS q
WHERE q.owner_id = :owner AND q.item_id = ANY (CAST(:ids AS uuid[]))
AND (q.attempts > 0 OR q.next_attempt_at < (
    SELECT p.next_attempt_at FROM search_pending AS p
    WHERE p.owner_id = :owner AND p.item_id = q.item_id))
FOR UPDATE SKIP LOCKED
""")
RESET_ENTRIES = text("""
UPDATE search_queue AS q SET attempts = 0, parked = false, error = NULL, next_attempt_at = (
    SELECT p.next_attempt_at FROM search_pending AS p
    WHERE p.owner_id = :owner AND p.item_id = q.item_id)
WHERE q.owner_id = :owner AND q.item_id = ANY (CAST(:ids AS uuid[])) AND q.model_id = :model
""")
DELETE_PARKED_ENTRIES = text("""
DELETE FROM search_queue AS q
WHERE q.owner_id = :owner AND q.item_id = ANY (CAST(:ids AS uuid[])) AND q.parked
AND q.item_id <> ALL (ARRAY(
    SELECT d.item_id FROM search_documents AS d
    WHERE d.owner_id = :owner AND d.item_id = ANY (CAST(:ids AS uuid[]))))
""")
DELETE_MARKS = text("""
DELETE FROM search_pending WHERE owner_id = :owner AND item_id = ANY (CAST(:ids AS uuid[]))
""")

# A document's weights depend on the owner's average length, and on BM25's constants. They are
# recomputed if the average that they were computed with differs from the current one by a factor of
# more than 1.2, or if the constants were others.
IS_OUTDATED = """
(d.weights_version < :version
    OR d.weights_version = :version
        AND d.average_length < greatest(1, o.length::real / o.documents) / 1.2
    OR d.weights_version = :version
        AND d.average_length > greatest(1, o.length::real / o.documents) * 1.2)
"""
MARK_STALE_OWNER = text(
    f"""
UPDATE search_owners AS o SET stale = true
WHERE o.owner_id = :owner AND o.documents > 0 AND NOT o.stale AND EXISTS (
    SELECT FROM search_documents AS d WHERE d.owner_id = :owner AND {IS_OUTDATED})
"""  # noqa: S608  # a constant
)
DELETE_EMPTY_OWNER = text("DELETE FROM search_owners WHERE owner_id = :owner AND documents <= 0")

LOCK_OUTDATED = text(
    f"""
SELECT d.item_id, greatest(1, o.length::real / o.documents)::real AS average
FROM search_owners AS o JOIN search_documents AS d ON d.owner_id = :owner
WHERE o.owner_id = :owner AND o.stale AND o.documents > 0 AND {IS_OUTDATED}
LIMIT :batch FOR UPDATE OF d SKIP LOCKED
"""  # noqa: S608  # a constant
)
RECOMPUTE_WEIGHTS = text("""
UPDATE search_documents AS d
SET average_length = CAST(:average AS real), weights_version = :version,
    weights = search_weights(d.terms, d.length, CAST(:average AS real), :k1, :b)
WHERE d.owner_id = :owner AND d.item_id = ANY (CAST(:ids AS uuid[]))
""")
MARK_WEIGHED_OWNER = text(
    f"""
UPDATE search_owners AS o SET stale = false
WHERE o.owner_id = :owner AND o.stale AND NOT EXISTS (
    SELECT FROM search_documents AS d
    WHERE d.owner_id = :owner AND o.documents > 0 AND {IS_OUTDATED})
"""  # noqa: S608  # a constant
)

# GIN's fast update puts new entries into a pending list, which every query has to scan until it is
# flushed.
FLUSH_GIN_PENDING_LIST = text("SELECT search_flush_terms()")


async def update_statistics(database: Database) -> int:
    """Counts a batch of the changed items of some owners, and recomputes outdated weights.

    An owner for whom this fails does not stop the others.

    Returns:
        How many items and documents were processed.
    """
    async with database.transaction() as session:
        limits = {"batch": OWNERS_PER_PASS, **WEIGHTS}
        for row in await session.fetch(SELECT_OUTDATED_OWNERS, limits):
            await session.execute(MARK_OUTDATED_OWNER, {"owner": row.owner_id, **WEIGHTS})
        changed = await CHANGED_OWNERS.next(session, OWNERS_PER_PASS)
        stale = await STALE_OWNERS.next(session, OWNERS_PER_PASS)
    done = 0
    for owner_id in dict.fromkeys(changed + stale):
        try:
            done += await _count_items(database, owner_id)
            done += await _recompute_weights(database, owner_id)
        except PostgresError:
            log.exception("statistics_failed", owner_id=str(owner_id))
    if done:
        async with database.transaction() as session:
            await session.execute(FLUSH_GIN_PENDING_LIST)
    return done


async def _try_lock(session: WriteSession, owner_id: UUID) -> bool:
    """Returns whether this transaction has got the lock on the owner's statistics."""
    key = advisory_lock("search.statistics", owner_id)
    locked: bool = await session.fetch_value(TRY_LOCK_OWNER, {"key": key})
    return locked


async def _count_items(
    database: Database, owner_id: UUID, among: Sequence[UUID] | None = None
) -> int:
    """Counts a batch of the marked items of an owner, or those of the items in `among`.

    If a batch fails because of its rows, the parts of it are tried separately, until the failing
    items are alone; these are tried again later, and parked in the end.

    Returns:
        How many items were counted or rescheduled; 0 also while another process counts.
    """
    claimed: Sequence[Row] = []
    try:
        async with database.transaction() as session:
            if await _try_lock(session, owner_id):
                claimed = await _claim(session, owner_id, among)
            if claimed:
                await _count(session, owner_id, [row.item_id for row in claimed])
            return len(claimed)
    except PostgresError as error:
        if not claimed or not blames_rows(error):
            raise
        if len(claimed) == 1:
            return await _schedule_retry(database, owner_id, claimed[0], error)
    parts = split([row.item_id for row in claimed])
    return await run_parts(parts, partial(_count_items, database, owner_id))


async def _claim(
    session: WriteSession, owner_id: UUID, among: Sequence[UUID] | None
) -> Sequence[Row]:
    """Locks and returns a batch of marks, at least one and with at most `WORDS_PER_BATCH` words, of
    those that were never tried; if there are none, one that failed before."""
    fresh = {"owner": owner_id, "among": among, "again": False, "batch": ITEMS_PER_BATCH}
    failed = fresh | {"again": True, "batch": 1}
    rows = await session.fetch(CLAIM_ITEMS, fresh) or await session.fetch(CLAIM_ITEMS, failed)
    batch = {"owner": owner_id, "ids": [row.item_id for row in rows]}
    lengths = {row.item_id: row.length for row in await session.fetch(SELECT_LENGTHS, batch)}
    return take(rows, lambda row: row.counted + lengths.get(row.item_id, 0), WORDS_PER_BATCH)


async def _count(session: WriteSession, owner_id: UUID, ids: Sequence[UUID]) -> None:
    batch: dict[str, Any] = {"owner": owner_id, "ids": ids, **WEIGHTS}
    await session.execute(COUNT_DOCUMENTS, batch)
    await session.execute(COUNT_TERMS, batch)
    if gone := [row.lexeme for row in await session.fetch(DELETE_TERMS, batch)]:
        await session.execute(DELETE_WORDS, {"owner": owner_id, "lexemes": gone})
    await session.execute(INSERT_WORDS, batch)
    await _enqueue(session, owner_id, ids)
    for statement in (DELETE_MARKS, MARK_STALE_OWNER, DELETE_EMPTY_OWNER):
        await session.execute(statement, batch)
    session.notify(SEARCH_CHANNEL)


async def _enqueue(session: WriteSession, owner_id: UUID, ids: Sequence[UUID]) -> None:
    """Queues the marked items to be embedded by each model."""
    batch: dict[str, Any] = {"owner": owner_id, "ids": ids}
    await session.execute(ENQUEUE_ITEMS, batch)
    changed = await session.fetch(LOCK_CHANGED_ENTRIES, batch)
    for model in dict.fromkeys(row.model_id for row in changed):
        of_model = [row.item_id for row in changed if row.model_id == model]
        await session.execute(RESET_ENTRIES, {"owner": owner_id, "model": model, "ids": of_model})
    await session.execute(DELETE_PARKED_ENTRIES, batch)


async def _schedule_retry(
    database: Database, owner_id: UUID, row: Row, error: PostgresError
) -> int:
    failed = {
        "owner": owner_id,
        "item": row.item_id,
        "attempts": row.attempts,
        "pause": FIRST_RETRY_DELAY * 2**row.attempts,
        "error": str(error)[:500],
        "max_attempts": MAX_ATTEMPTS,
    }
    log.warning("item_not_counted", item_id=str(row.item_id), attempts=row.attempts + 1)
    async with database.transaction() as session:
        return await session.execute(SCHEDULE_RETRY, failed)


async def _recompute_weights(database: Database, owner_id: UUID) -> int:
    """Recomputes a batch of an owner's outdated weights; returns how many, 0 also while another
    process does so. A batch that takes too long is tried again with fewer."""
    for size in WEIGHTS_PER_BATCH:
        try:
            async with database.transaction() as session:
                if not await _try_lock(session, owner_id):
                    return 0
                return await _recompute(session, owner_id, size)
        except PostgresError as error:
            if not blames_rows(error) or size == WEIGHTS_PER_BATCH[-1]:
                raise
    return 0


async def _recompute(session: WriteSession, owner_id: UUID, size: int) -> int:
    batch: dict[str, Any] = {"owner": owner_id, "batch": size, **WEIGHTS}
    if outdated := await session.fetch(LOCK_OUTDATED, batch):
        ids = [row.item_id for row in outdated]
        values = batch | {"ids": ids, "average": outdated[0].average}
        await session.execute(RECOMPUTE_WEIGHTS, values)
    await session.execute(MARK_WEIGHED_OWNER, batch)
    return len(outdated)
