"""A change of model or language, while searches go on."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from sqlalchemy import text

from features.search.embedding import Embedder
from features.search.indexing.embeddings import embed_batch
from features.search.indexing.models import (
    BATCH,
    FIRST_ID,
    LOCK,
    NO_TIMEOUT,
    KnownModel,
    add_model,
    current_language,
    hnsw_index,
    prepare,
    set_language,
)
from shared.database import Database

POLL_SECONDS = 0.5

WAITING = text("SELECT count(*) FROM search_queue WHERE model_id = :model AND NOT parked")
FORGET_WORDS = text("DELETE FROM search_words")
INDEX_AGAIN = text("""
SELECT ids[cardinality(ids)], search_index(ids) FROM (
    SELECT ARRAY(SELECT id FROM items WHERE id > :after ORDER BY id LIMIT :batch) AS ids
) AS batch WHERE cardinality(ids) > 0
""")
IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
ACTIVATE = [
    text("UPDATE search_models SET active = false WHERE active AND id <> :model"),
    text("UPDATE search_models SET active = true WHERE id = :model"),
    text("DELETE FROM search_queue WHERE model_id <> :model"),
    text("DELETE FROM search_embeddings WHERE model_id <> :model"),
    text("DELETE FROM search_models WHERE id <> :model RETURNING id"),
]


async def reindex(
    database: Database, embedder: Embedder, language: str
) -> AsyncGenerator[tuple[str, int], None]:
    """Brings the index to this language and model, and searches that model from then on.

    Until then searches use what was there before. All progress is in the database: a run that
    was cut off goes on where it was, and background workers take part in it.

    Yields:
        The step under way, and how many documents are still to be done in it.
    """
    await prepare(database, embedder.model, language)
    await _change_language(database, language)
    known = await add_model(database, embedder.model)
    async for waiting in _embed_all(database, embedder, known):
        yield "embedding", waiting
    yield "building the vector index", 0
    await _build_index(database, known)
    async for waiting in _embed_all(database, embedder, known):  # what was written meanwhile
        yield "embedding", waiting
    await _activate(database, known)


async def _change_language(database: Database, language: str) -> None:
    async with database.write.begin() as session:
        await session.execute(LOCK)
        if await current_language(session) == language:
            return
        await set_language(session, language, complete=False)
        await session.execute(FORGET_WORDS)
    batch = {"after": FIRST_ID, "batch": BATCH}
    while batch["after"]:
        async with database.write.begin() as session:
            batch["after"] = (await session.execute(INDEX_AGAIN, batch)).scalar()
    async with database.write.begin() as session:
        await set_language(session, language, complete=True)


async def _embed_all(
    database: Database, embedder: Embedder, known: KnownModel
) -> AsyncIterator[int]:
    while True:
        done = await embed_batch(database, embedder, known)
        async with database.write.connect() as session:
            waiting = (await session.execute(WAITING, {"model": known.id})).scalar_one()
        yield waiting
        if not waiting:
            return
        if not done:  # what is left is in the hands of others, or is to be tried again later
            await asyncio.sleep(POLL_SECONDS)


async def _build_index(database: Database, known: KnownModel) -> None:
    name = f"ix_search_embeddings_model_{known.id:d}"
    engine = database.write.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.connect() as session:
        await session.execute(text("SET statement_timeout = 0"))
        try:
            if (await session.execute(IS_VALID, {"name": name})).scalar() is False:
                await session.execute(text(f"DROP INDEX {name}"))  # a build that was cut off
            statement = (
                f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {hnsw_index(known.id, known.model)}"
            )
            await session.execute(text(statement))
        finally:
            await session.execute(text("RESET statement_timeout"))


async def _activate(database: Database, known: KnownModel) -> None:
    async with database.write.begin() as session:
        await session.execute(NO_TIMEOUT)
        await session.execute(LOCK)
        for statement in ACTIVATE:
            result = await session.execute(statement, {"model": known.id})
        for removed in result.scalars():
            await session.execute(
                text(f"DROP INDEX IF EXISTS ix_search_embeddings_model_{removed:d}")
            )
