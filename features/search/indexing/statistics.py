"""Maintains the statistics that BM25 needs, per owner: documents, lengths, and terms.

Writers mark the items that they have changed; one process at a time counts those of an owner. So
writers that share a common word do not wait for each other, at the price of statistics that lag
slightly.
"""

from uuid import UUID

from sqlalchemy import text

from features.search.indexing.documents import OWNERS_OF, SEARCH_CHANNEL, WEIGHTS
from shared.db import Database, WriteSession
from shared.db.locks import advisory_lock

ITEMS_PER_BATCH = 1_000
WEIGHTS_PER_BATCH = 500
OWNERS_PER_PASS = 100

MARK_OUTDATED_OWNERS = text("""
UPDATE search_owners SET stale = true, weights_version = :version
WHERE weights_version < :version
""")
# In random order, so that processes meet seldom and no owner waits for the others.
SELECT_OWNERS = text(
    """
SELECT owner_id FROM (
    {pending} UNION SELECT owner_id FROM search_owners WHERE stale
) AS owners ORDER BY random() LIMIT :batch
""".format(pending=OWNERS_OF.format(table="search_pending"))  # noqa: S608  # a constant
)

# One process at a time: two that update the same terms in a different order would deadlock.
TRY_LOCK_OWNER = text("SELECT pg_try_advisory_xact_lock(CAST(:key AS bigint))")

# Rows that a writer has locked are skipped. The statements after it see all that was committed
# before: the words that the marks stand for.
CLAIM_ITEMS = text("""
SELECT item_id FROM search_pending WHERE owner_id = :owner
LIMIT :batch FOR UPDATE SKIP LOCKED
""")

APPLY_TERM_DELTAS = text("""
WITH batch AS MATERIALIZED (
    SELECT p.item_id, p.counted, d.terms, d.length
    FROM search_pending AS p
    LEFT JOIN search_documents AS d ON d.owner_id = :owner AND d.item_id = p.item_id
    WHERE p.owner_id = :owner AND p.item_id = ANY (CAST(:ids AS uuid[]))
), owners AS (
    INSERT INTO search_owners AS o (owner_id, documents, length, weights_version)
    SELECT :owner, count(terms) - count(counted),
        coalesce(sum(length), 0) - coalesce(sum(search_length(counted)), 0),
        CAST(:version AS smallint)
    FROM batch
    ON CONFLICT (owner_id) DO UPDATE
        SET documents = o.documents + excluded.documents, length = o.length + excluded.length
), deltas AS (
    SELECT lexeme, sum(sign) AS documents
    FROM (
        SELECT unnest(tsvector_to_array(terms)) AS lexeme, 1 AS sign FROM batch
        UNION ALL SELECT unnest(tsvector_to_array(counted)), -1 FROM batch
    ) AS signed
    WHERE lexeme <> search_owner_term(:owner)
    GROUP BY lexeme HAVING sum(sign) <> 0
), terms AS (
    INSERT INTO search_terms AS t (owner_id, lexeme, documents)
    SELECT :owner, lexeme, documents FROM deltas
    ON CONFLICT (owner_id, lexeme) DO UPDATE SET documents = t.documents + excluded.documents
    RETURNING lexeme, documents
)
SELECT ARRAY(SELECT lexeme FROM terms WHERE documents <= 0) AS gone_lexemes
""")

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
    WHERE length(word) BETWEEN 2 AND 64 AND NOT EXISTS (
        SELECT FROM search_words AS w WHERE w.owner_id = :owner AND w.word = spelt.word)
) AS unseen
WHERE cardinality(lexemes) = 1
ON CONFLICT DO NOTHING
""")
DELETE_TERMS = [
    text("""
DELETE FROM search_words WHERE owner_id = :owner AND lexeme = ANY (CAST(:lexemes AS text[]))
"""),
    text("""
DELETE FROM search_terms
WHERE owner_id = :owner AND lexeme = ANY (CAST(:lexemes AS text[])) AND documents <= 0
"""),
]

# A row that is being embedded is locked, and stays as it is: its hash will not match.
ENQUEUE_ITEMS = [
    text("""
INSERT INTO search_queue (owner_id, item_id, model_id)
SELECT d.owner_id, d.item_id, m.id
FROM search_documents AS d CROSS JOIN search_models AS m
WHERE d.owner_id = :owner AND d.item_id = ANY (CAST(:ids AS uuid[])) AND NOT EXISTS (
    SELECT FROM search_embeddings AS e WHERE e.owner_id = d.owner_id AND e.item_id = d.item_id
    AND e.model_id = m.id AND e.text_hash = d.text_hash)
ON CONFLICT (owner_id, item_id, model_id) DO NOTHING
"""),
    text("""
UPDATE search_queue AS q
SET attempts = 0, parked = false, error = NULL, next_attempt_at = statement_timestamp()
FROM (
    SELECT item_id, model_id FROM search_queue
    WHERE owner_id = :owner AND item_id = ANY (CAST(:ids AS uuid[])) AND attempts > 0
    FOR UPDATE SKIP LOCKED
) AS failed
WHERE q.owner_id = :owner AND q.item_id = failed.item_id AND q.model_id = failed.model_id
"""),
    text("""
DELETE FROM search_queue AS q
WHERE q.owner_id = :owner AND q.item_id = ANY (CAST(:ids AS uuid[])) AND q.parked
AND NOT EXISTS (
    SELECT FROM search_documents AS d WHERE d.owner_id = :owner AND d.item_id = q.item_id)
"""),
]
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

RECOMPUTE_WEIGHTS = text(
    f"""
WITH outdated AS (
    SELECT d.item_id, greatest(1, o.length::real / o.documents)::real AS average
    FROM search_owners AS o JOIN search_documents AS d ON d.owner_id = :owner
    WHERE o.owner_id = :owner AND o.stale AND o.documents > 0 AND {IS_OUTDATED}
    LIMIT :batch FOR UPDATE OF d SKIP LOCKED
)
UPDATE search_documents AS d SET average_length = outdated.average, weights_version = :version,
    weights = search_weights(d.terms, d.length, outdated.average, :k1, :b)
FROM outdated WHERE d.owner_id = :owner AND d.item_id = outdated.item_id
"""  # noqa: S608  # a constant
)
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
    """Counts a batch of the changed items of each owner, and recomputes outdated weights.

    Returns:
        How many items and documents were processed.
    """
    async with database.transaction() as session:
        await session.execute(MARK_OUTDATED_OWNERS, WEIGHTS)
        rows = await session.fetch(SELECT_OWNERS, {"batch": OWNERS_PER_PASS})
    return sum([await _update_owner(database, row.owner_id) for row in rows])


async def _update_owner(database: Database, owner_id: UUID) -> int:
    """Returns how many items and documents were processed; 0 also while another process does it."""
    async with database.transaction() as session:
        key = advisory_lock("search.statistics", owner_id)
        if not await session.fetch_value(TRY_LOCK_OWNER, {"key": key}):
            return 0
        return await _count_items(session, owner_id) + await _recompute_weights(session, owner_id)


async def _count_items(session: WriteSession, owner_id: UUID) -> int:
    claimed = await session.fetch(CLAIM_ITEMS, {"owner": owner_id, "batch": ITEMS_PER_BATCH})
    if not claimed:
        return 0
    batch = {"owner": owner_id, "ids": [row.item_id for row in claimed], **WEIGHTS}
    gone = await session.fetch_value(APPLY_TERM_DELTAS, batch)
    await session.execute(INSERT_WORDS, batch)
    if gone:
        for statement in DELETE_TERMS:
            await session.execute(statement, {"owner": owner_id, "lexemes": gone})
    for statement in (*ENQUEUE_ITEMS, DELETE_MARKS, MARK_STALE_OWNER, DELETE_EMPTY_OWNER):
        await session.execute(statement, batch)
    await session.execute(FLUSH_GIN_PENDING_LIST)
    session.notify(SEARCH_CHANNEL)
    return len(claimed)


async def _recompute_weights(session: WriteSession, owner_id: UUID) -> int:
    values = {"owner": owner_id, "batch": WEIGHTS_PER_BATCH, **WEIGHTS}
    done = await session.execute(RECOMPUTE_WEIGHTS, values)
    await session.execute(MARK_WEIGHED_OWNER, values)
    return done
