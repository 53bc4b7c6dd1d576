"""Processes the queue of items to embed, in batches; any number of processes can share it."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from asyncpg import PostgresError
from sqlalchemy import TextClause, text

from features.search.embedding import (
    PROBE_TEXT,
    Embedder,
    Embedders,
    EmbeddingRefused,
    EmbeddingUnavailable,
    Vector,
    to_pgvector,
)
from features.search.indexing.failed_batches import blames_rows, run_parts, split, take
from features.search.indexing.models import RegisteredModel, prepare, registered_models
from shared.db import Database, WriteSession
from shared.db.owners import OwnersInTurn

log = structlog.get_logger(__name__)

ENTRIES_PER_BATCH = 64
OWNERS_PER_BATCH = 16
CHARACTERS_PER_BATCH = 16_000  # so that a batch of long texts takes no longer
CHARACTERS_READ = 1_200  # of a text by the local model, about
MAX_EMBEDDING_ATTEMPTS = 5
FIRST_RETRY_DELAY = timedelta(seconds=2)  # doubles with each attempt
MAX_CHARACTERS = 50_000  # of an item's text, as of its words

IS_DUE = "t.model_id = :model AND NOT t.parked AND t.next_attempt_at <= statement_timestamp()"
# By an index of their own, retries are found without a look at the rows that were never tried.
IS_FRESH, IS_RETRY = f"{IS_DUE} AND t.attempts = 0", f"{IS_DUE} AND t.attempts > 0"
FRESH_OWNERS, RETRY_OWNERS = (OwnersInTurn("search_queue", each) for each in (IS_FRESH, IS_RETRY))
# The latest change comes first: it does not wait for an import of its owner. The rows stay locked
# until the vectors are stored. If the process dies, PostgreSQL releases the locks, and another
# process can claim the rows at once.
CLAIM_FRESH, CLAIM_RETRY = (
    text(f"""
SELECT t.item_id, t.attempts FROM search_queue AS t
WHERE t.owner_id = :owner AND {each}
AND (CAST(:among AS uuid[]) IS NULL OR t.item_id = ANY (CAST(:among AS uuid[])))
ORDER BY t.next_attempt_at DESC LIMIT :batch FOR UPDATE SKIP LOCKED
""")  # noqa: S608  # constants
    for each in (IS_FRESH, IS_RETRY)
)
# A text and its hash are of one snapshot. A FULL JOIN reads each table once: another join would
# read all rows of the owner for each entry while the planner's statistics are from before an
# import.
SELECT_TEXTS = text("""
SELECT item_id, text_hash, text
FROM (
    SELECT d.item_id, d.text_hash FROM search_documents AS d
    WHERE d.owner_id = :owner AND d.item_id = ANY (CAST(:ids AS uuid[]))
) AS document
FULL JOIN (
    SELECT i.id AS item_id,
        left(i.title || E'\\n' || coalesce(i.description, ''), :max_characters) AS text
    FROM items AS i WHERE i.owner_id = :owner AND i.id = ANY (CAST(:ids AS uuid[]))
) AS item USING (item_id)
""")

# A document that changed while it was embedded, or is locked by a writer, stays in the queue.
LOCK_UNCHANGED = text("""
SELECT d.item_id FROM search_documents AS d
WHERE d.owner_id = :owner AND d.item_id = ANY (CAST(:ids AS uuid[]))
AND (d.item_id, d.text_hash) IN (
    SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:hashes AS bytea[])))
FOR SHARE OF d SKIP LOCKED
""")
STORE_EMBEDDINGS = text("""
INSERT INTO search_embeddings (owner_id, item_id, model_id, text_hash, embedding)
SELECT CAST(:owner AS uuid), e.item_id, CAST(:model AS integer), e.text_hash,
    CAST(e.vector AS halfvec)
FROM unnest(CAST(:ids AS uuid[]), CAST(:hashes AS bytea[]), CAST(:vectors AS text[]))
    AS e (item_id, text_hash, vector)
ON CONFLICT (owner_id, item_id, model_id) DO UPDATE
    SET (text_hash, embedding) = (excluded.text_hash, excluded.embedding)
""")
DELETE_ENTRIES = text("""
DELETE FROM search_queue
WHERE owner_id = :owner AND item_id = ANY (CAST(:ids AS uuid[])) AND model_id = :model
""")

# Exponential backoff: retries after 2, 4, 8 and 16 seconds, then parks the row until its item
# changes. A document that has changed meanwhile, or is locked by a writer, is not rescheduled,
# because it was its old text that failed; nor is a row that another process tries again.
SCHEDULE_RETRY = text("""
WITH unchanged AS (
    SELECT FROM search_documents WHERE owner_id = :owner AND item_id = :id AND text_hash = :hash
    FOR SHARE SKIP LOCKED
), failed AS (
    SELECT FROM search_queue WHERE owner_id = :owner AND item_id = :id AND model_id = :model
    AND attempts = :attempts FOR UPDATE SKIP LOCKED
)
UPDATE search_queue AS q SET attempts = attempts + 1, error = :error,
    parked = attempts + 1 >= :max_attempts,
    next_attempt_at = statement_timestamp() + CAST(:pause AS interval)
FROM unchanged, failed WHERE q.owner_id = :owner AND q.item_id = :id AND q.model_id = :model
""")


class Entry(NamedTuple):
    """A claimed row of the queue, with its item's text; without a hash if the item is deleted."""

    owner_id: UUID
    item_id: UUID
    attempts: int
    text_hash: bytes | None
    text: str | None


async def embed_due(database: Database, embedders: Embedders, language: str) -> int:
    """Embeds a batch of queued items for each model that the settings can reach. On the first
    start, prepares the index instead.

    Returns:
        How many rows left the queue or were rescheduled; 1 after preparing the index; 0 also while
        the model does not answer.
    """
    models = await registered_models(database.read())
    if not any(registered.active for registered in models):
        await prepare(database, embedders.configured, language)
        return 1
    done = 0
    for registered in models:
        if embedder := embedders.get(registered.model):
            done += await embed_batch(database, embedder, registered)
    return done


async def embed_batch(database: Database, embedder: Embedder, registered: RegisteredModel) -> int:
    """Embeds a batch of the items queued for one model that were never tried, then one that failed
    before, alone: neither waits for the other to be none.

    Returns:
        How many rows left the queue or were rescheduled; 0 also while the model does not answer.
    """
    done = 0
    try:
        for again in (False, True):
            done += await _embed(database, embedder, registered, again=again)
    except EmbeddingUnavailable as error:
        log.warning("embedding_unavailable", model=registered.model.name, reason=error.detail)
    return done


async def _embed(
    database: Database,
    embedder: Embedder,
    registered: RegisteredModel,
    among: Sequence[Entry] | None = None,
    *,
    again: bool = False,
) -> int:
    """Embeds a batch of the due rows that were never tried, or of those in `among`; with `again`,
    one row that failed before.

    If a batch fails because of its rows, its parts are tried separately, those of each owner first,
    until the failing rows are alone; these are rescheduled. The model is not to blame if it embeds
    the probe text. Each part has its own transaction, so that the timeout of one does not undo the
    others.

    Raises:
        EmbeddingUnavailable: the model embeds not even the probe text.
    """
    rows: Sequence[Entry] = []
    try:
        async with database.transaction() as session:
            due = await _claim(session, registered, among, again)
            gone = [row for row in due if row.text_hash is None]
            rows = [row for row in due if row.text_hash is not None]
            for of_owner in _by_owner(gone):
                await session.execute(DELETE_ENTRIES, _keys(registered, of_owner))
            vectors = await _embed_documents(embedder, [row.text or "" for row in rows])
            embedded = {row.item_id: vector for row, vector in zip(rows, vectors, strict=True)}
            stored = [
                await _store(session, registered, of_owner, embedded)
                for of_owner in _by_owner(rows)
            ]
            return len(gone) + sum(stored)
    except (EmbeddingRefused, EmbeddingUnavailable) as error:
        await _probe(embedder)
        reason = str(error)
    except PostgresError as error:
        if not rows or not blames_rows(error):
            raise
        reason = str(error)
    if len(rows) == 1:
        return await _schedule_retry(database, registered, rows[0], reason)
    parts = _by_owner(rows) if rows[0].owner_id != rows[-1].owner_id else split(rows)
    return await run_parts(parts, partial(_embed, database, embedder, registered))


async def _claim(
    session: WriteSession,
    registered: RegisteredModel,
    among: Sequence[Entry] | None = None,
    again: bool = False,
) -> list[Entry]:
    """Locks and returns a batch of rows that were never tried, of which each owner has an equal
    share; with `again`, one row that failed before."""
    queued, claim = (RETRY_OWNERS, CLAIM_RETRY) if again else (FRESH_OWNERS, CLAIM_FRESH)
    of: dict[str, Any] = {"model": registered.id}
    if among is None:
        owners = await queued.next(session, 1 if again else OWNERS_PER_BATCH, of)
        of["among"] = None
    else:
        owners = list(dict.fromkeys(row.owner_id for row in among))
        of["among"] = [row.item_id for row in among]
    rows: list[Entry] = []
    most, characters = 1 if again else ENTRIES_PER_BATCH, CHARACTERS_PER_BATCH
    for owners_left, owner_id in zip(range(len(owners), 0, -1), owners, strict=True):
        share = -(-(most - len(rows)) // owners_left)
        found = await _claim_of_owner(session, claim, of | {"owner": owner_id, "batch": share})
        rows += (taken := take(found, _size, characters // owners_left))
        characters -= sum(map(_size, taken))
    return rows


async def _claim_of_owner(
    session: WriteSession, claim: TextClause, values: dict[str, Any]
) -> list[Entry]:
    """Locks rows of an owner, and reads their items' texts."""
    claimed = await session.fetch(claim, values)
    if not claimed:
        return []
    ids = [row.item_id for row in claimed]
    batch = {"owner": values["owner"], "ids": ids, "max_characters": MAX_CHARACTERS}
    found = await session.fetch(SELECT_TEXTS, batch)
    texts = {row.item_id: (row.text_hash, row.text) for row in found}
    return [
        Entry(values["owner"], row.item_id, row.attempts, *texts.get(row.item_id, (None, None)))
        for row in claimed
    ]


def _size(row: Entry) -> int:
    """Returns how many characters of a text the model reads."""
    return min(len(row.text or ""), CHARACTERS_READ)


def _by_owner(rows: Sequence[Entry]) -> list[Sequence[Entry]]:
    owners = dict.fromkeys(row.owner_id for row in rows)
    return [[row for row in rows if row.owner_id == owner_id] for owner_id in owners]


async def _embed_documents(embedder: Embedder, texts: Sequence[str]) -> Sequence[Vector]:
    """Embeds texts; does not call the model without texts.

    Raises:
        EmbeddingUnavailable: the model does not answer.
        EmbeddingRefused: the model cannot embed one of the texts, or fails on it.
    """
    try:
        return await embedder.embed_documents(texts) if texts else []
    except (EmbeddingRefused, EmbeddingUnavailable):
        raise
    except Exception as error:  # of any kind: a text that breaks the model must not stop the queue
        raise EmbeddingRefused(repr(error)) from error


async def _probe(embedder: Embedder) -> None:
    """Embeds a plain text. If this works, the texts that failed before are to blame.

    Raises:
        EmbeddingUnavailable: the model does not embed the plain text.
    """
    try:
        await _embed_documents(embedder, [PROBE_TEXT])
    except EmbeddingRefused as error:
        raise EmbeddingUnavailable(str(error)) from error


async def _store(
    session: WriteSession,
    registered: RegisteredModel,
    rows: Sequence[Entry],
    vectors: Mapping[UUID, Vector],
) -> int:
    """Stores the vectors of an owner's rows that are unchanged; returns how many."""
    of = _keys(registered, rows)
    unchanged = {row.item_id for row in await session.fetch(LOCK_UNCHANGED, of)}
    if rows := [row for row in rows if row.item_id in unchanged]:
        stored = _keys(registered, rows)
        stored["vectors"] = [to_pgvector(vectors[row.item_id]) for row in rows]
        await session.execute(STORE_EMBEDDINGS, stored)
        await session.execute(DELETE_ENTRIES, stored)
    return len(rows)


def _keys(registered: RegisteredModel, rows: Sequence[Entry]) -> dict[str, Any]:
    """Returns the values of statements on rows of the queue, all of one owner."""
    return {
        "owner": rows[0].owner_id,
        "model": registered.id,
        "ids": [row.item_id for row in rows],
        "hashes": [row.text_hash for row in rows],
    }


async def _schedule_retry(
    database: Database, registered: RegisteredModel, row: Entry, error: str
) -> int:
    failed = {
        "owner": row.owner_id,
        "id": row.item_id,
        "hash": row.text_hash,
        "model": registered.id,
        "attempts": row.attempts,
        "pause": FIRST_RETRY_DELAY * 2**row.attempts,
        "error": error[:500],
        "max_attempts": MAX_EMBEDDING_ATTEMPTS,
    }
    log.warning("embedding_refused", item_id=str(row.item_id), attempts=row.attempts + 1)
    async with database.transaction() as session:
        return await session.execute(SCHEDULE_RETRY, failed)
