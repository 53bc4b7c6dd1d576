"""Maintains the statistics that BM25 needs, per owner: documents, lengths, and terms.

Writers append their changes to `search_changes`; one process at a time adds these up. So writers
that share a common word do not wait for each other, at the price of statistics that lag slightly.
"""

from sqlalchemy import text

from shared.db import Database, WriteSession
from shared.db.locks import advisory_lock

CHANGES_PER_BATCH = 1_000
WEIGHTS_PER_BATCH = 500

# One process at a time: two that update the same terms in a different order would deadlock.
TRY_LOCK_STATISTICS = text(
    f"SELECT pg_try_advisory_xact_lock({advisory_lock('search.statistics')})"
)

APPLY_TERM_DELTAS = text("""
WITH batch AS (
    DELETE FROM search_changes WHERE id IN (SELECT id FROM search_changes ORDER BY id LIMIT :batch)
    RETURNING *
), owners AS (
    INSERT INTO search_owners AS o (owner_id, documents, length)
    SELECT owner_id, sum(sign), sum(sign * length) FROM batch GROUP BY owner_id
    ON CONFLICT (owner_id) DO UPDATE
        SET documents = o.documents + excluded.documents, length = o.length + excluded.length
    RETURNING owner_id
), terms AS (
    INSERT INTO search_terms AS t (owner_id, lexeme, documents)
    SELECT owner_id, lexeme, sum(sign) FROM batch, unnest(lexemes) AS lexeme
    GROUP BY owner_id, lexeme HAVING sum(sign) <> 0
    ON CONFLICT (owner_id, lexeme) DO UPDATE SET documents = t.documents + excluded.documents
    RETURNING owner_id, lexeme, documents
), spelt AS (
    SELECT DISTINCT i.owner_id, unnest(tsvector_to_array(
        to_tsvector('simple', search_plain(i.title || ' ' || coalesce(i.description, ''))))) AS word
    FROM batch JOIN items AS i ON i.id = batch.item_id WHERE batch.sign > 0
), words AS (
    INSERT INTO search_words (owner_id, word, lexeme)
    SELECT owner_id, word, lexemes[1]
    FROM (
        SELECT owner_id, word, tsvector_to_array(to_tsvector('search', word)) AS lexemes
        FROM spelt
        WHERE length(word) BETWEEN 2 AND 64 AND NOT EXISTS (
            SELECT FROM search_words AS w WHERE (w.owner_id, w.word) = (spelt.owner_id, spelt.word))
    ) AS unseen
    WHERE cardinality(lexemes) = 1
    ON CONFLICT DO NOTHING
)
SELECT (SELECT count(*) FROM batch) AS done,
    ARRAY(SELECT owner_id FROM owners) AS owners,
    ARRAY(SELECT owner_id FROM terms WHERE documents <= 0) AS gone_owners,
    ARRAY(SELECT lexeme FROM terms WHERE documents <= 0) AS gone_lexemes
""")

DELETE_TERMS = text("""
WITH gone AS (
    DELETE FROM search_terms AS t
    USING unnest(CAST(:owners AS uuid[]), CAST(:lexemes AS text[])) AS g (owner_id, lexeme)
    WHERE t.owner_id = g.owner_id AND t.lexeme = g.lexeme AND t.documents <= 0
    RETURNING t.owner_id, t.lexeme
)
DELETE FROM search_words AS w USING gone
WHERE w.owner_id = gone.owner_id AND w.lexeme = gone.lexeme
""")

# A document's weights depend on the owner's average length. They are recomputed if the average
# that they were computed with differs from the current one by a factor of more than 1.2.
MARK_STALE_OWNERS = text("""
UPDATE search_owners AS o SET stale = true
WHERE o.owner_id = ANY (:owners) AND o.documents > 0 AND NOT o.stale AND EXISTS (
    SELECT FROM search_documents AS d WHERE d.owner_id = o.owner_id
    AND (d.average_length < o.length::real / o.documents / 1.2
        OR d.average_length > o.length::real / o.documents * 1.2)
)
""")
DELETE_OWNERS = text("DELETE FROM search_owners WHERE owner_id = ANY (:owners) AND documents <= 0")

RECOMPUTE_WEIGHTS = text("""
WITH owner AS (
    SELECT owner_id, greatest(1, length::real / documents)::real AS average
    FROM search_owners WHERE stale AND documents > 0 LIMIT 1
), off AS (
    SELECT d.item_id, owner.average FROM owner JOIN search_documents AS d USING (owner_id)
    WHERE d.average_length < owner.average / 1.2 OR d.average_length > owner.average * 1.2
    LIMIT :batch FOR UPDATE OF d SKIP LOCKED
), recomputed AS (
    UPDATE search_documents AS d SET average_length = off.average,
        weights = coalesce(search_weights(d.terms, d.length, off.average), '{}/268435456')
    FROM off WHERE d.item_id = off.item_id
    RETURNING 1
), finished AS (
    UPDATE search_owners SET stale = false
    WHERE owner_id IN (SELECT owner_id FROM owner) AND NOT EXISTS (
        SELECT FROM owner JOIN search_documents AS d USING (owner_id)
        WHERE d.average_length < owner.average / 1.2 OR d.average_length > owner.average * 1.2
    )
)
SELECT count(*) FROM recomputed
""")

# GIN's fast update puts new entries into a pending list, which every query has to scan until it is
# flushed.
FLUSH_GIN_PENDING_LIST = text("SELECT gin_clean_pending_list('ix_search_documents_terms')")


async def update_statistics(database: Database) -> int:
    """Adds up a batch of changes, and recomputes a batch of outdated weights.

    Returns:
        How many changes and documents were processed; 0 also while another process does it.
    """
    async with database.transaction() as session:
        if not await session.fetch_value(TRY_LOCK_STATISTICS):
            return 0
        return await _apply_term_deltas(session) + await _recompute_weights(session)


async def _apply_term_deltas(session: WriteSession) -> int:
    [applied] = await session.fetch(APPLY_TERM_DELTAS, {"batch": CHANGES_PER_BATCH})
    if applied.gone_lexemes:
        gone = {"owners": applied.gone_owners, "lexemes": applied.gone_lexemes}
        await session.execute(DELETE_TERMS, gone)
    if applied.done:
        for statement in (MARK_STALE_OWNERS, DELETE_OWNERS):
            await session.execute(statement, {"owners": applied.owners})
        await session.execute(FLUSH_GIN_PENDING_LIST)
    done: int = applied.done
    return done


async def _recompute_weights(session: WriteSession) -> int:
    done: int = await session.fetch_value(RECOMPUTE_WEIGHTS, {"batch": WEIGHTS_PER_BATCH})
    return done
