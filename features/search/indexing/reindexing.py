"""Changes the model or the language of the index without interrupting searches."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncpg import Connection
from sqlalchemy import text

from features.search.embedding import Embedder
from features.search.indexing.documents import (
    ALL_ROWS_SECONDS,
    LOCK_MODELS,
    change_language,
    sweep,
    wait_for_open_writers,
)
from features.search.indexing.embeddings import embed_batch
from features.search.indexing.models import (
    RegisteredModel,
    add_model,
    hnsw_index_name,
    prepare,
)
from shared.db import Database
from shared.problems import Unavailable

POLL_SECONDS = 0.5

MAY_BUILD_INDEX = """
SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'search_embeddings'::regclass
"""
COUNT_WAITING = text("SELECT count(*) FROM search_queue WHERE model_id = :model AND NOT parked")
SELECT_INDEX_DEFINITION = "SELECT search_hnsw_index($1, $2)"
IS_INDEX_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
COUNT_PARKED = text("""
SELECT count(*) FROM search_queue WHERE parked
AND model_id = (SELECT id FROM search_models WHERE active)
""")
SELECT_OTHER_MODELS = "SELECT id FROM search_models WHERE id <> $1"
SWITCH_ACTIVE_MODEL = [
    text("UPDATE search_models SET active = false WHERE active AND id <> :model"),
    text("UPDATE search_models SET active = true WHERE id = :model"),
]
# Citus needs it where a transaction writes to a table on every node after distributed ones, whose
# shards it would visit at once; PostgreSQL alone ignores it.
VISIT_SHARDS_IN_TURN = text(
    "SELECT set_config('citus.multi_shard_modify_mode', 'sequential', true)"
)
DELETE_OTHER_QUEUES = text("DELETE FROM search_queue WHERE model_id <> :model")
DELETE_OTHER_MODELS = [
    DELETE_OTHER_QUEUES,
    text("DELETE FROM search_embeddings WHERE model_id <> :model"),
    text("DELETE FROM search_models WHERE id <> :model"),
]


async def reindex(
    database: Database, embedder: Embedder, language: str
) -> AsyncGenerator[tuple[str, int], None]:
    """Rebuilds the index for this language and model, then makes the model the active one.

    Until then semantic searches use the previous model. All progress is stored in the database: an
    interrupted run resumes embedding where it stopped, and background workers embed concurrently.

    Yields:
        The current step, and how many documents are left to embed in it.

    Raises:
        Unavailable: the role of the settings is not the tables' owner, or a transaction has been
            writing to `items` for more than two minutes.
    """
    await _check_role(database)
    await prepare(database, embedder.model, language)
    await change_language(database, language)
    await sweep(database)
    registered = await add_model(database, embedder.model)
    async for waiting in _embed_all(database, embedder, registered):
        yield "embedding", waiting
    yield "building the vector index", 0
    await _build_index(database, registered)
    async for waiting in _embed_all(
        database, embedder, registered
    ):  # items written during the build
        yield "embedding", waiting
    await _switch(database, registered)
    yield "removing what was searched before", 0
    await _delete_other_models(database, registered)


async def _check_role(database: Database) -> None:
    async with database.direct() as session:
        if not await session.fetchval(MAY_BUILD_INDEX):
            role = await session.fetchval("SELECT current_user")
            raise Unavailable(f"{role} may build no index: reindex as the owner of the tables")


async def count_parked(database: Database) -> int:
    """Counts the items that are parked because the active model could not embed them."""
    async with database.transaction() as session:
        parked: int = await session.fetch_value(COUNT_PARKED)
    return parked


async def _embed_all(
    database: Database, embedder: Embedder, registered: RegisteredModel
) -> AsyncIterator[int]:
    while True:
        done = await embed_batch(database, embedder, registered)
        async with database.transaction() as session:
            waiting = await session.fetch_value(COUNT_WAITING, {"model": registered.id})
        yield waiting
        if not waiting:
            return
        if not done:  # other processes have claimed the rest, or its retry is not due yet
            await asyncio.sleep(POLL_SECONDS)


async def _build_index(database: Database, registered: RegisteredModel) -> None:
    name = hnsw_index_name(registered.id)
    async with _without_timeouts(database) as session:
        if await session.fetchval(IS_INDEX_VALID, name) is False:  # left by an interrupted build
            await session.execute(f"DROP INDEX CONCURRENTLY {name}")
        definition = await session.fetchval(
            SELECT_INDEX_DEFINITION, registered.id, registered.model.dimension
        )
        await session.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {definition}")


async def _switch(database: Database, registered: RegisteredModel) -> None:
    async with database.transaction() as session:
        await session.execute(LOCK_MODELS)
        for statement in SWITCH_ACTIVE_MODEL:
            await session.execute(statement, {"model": registered.id})


async def _delete_other_models(database: Database, registered: RegisteredModel) -> None:
    async with _without_timeouts(database) as session:
        for other in await session.fetch(SELECT_OTHER_MODELS, registered.id):
            name = hnsw_index_name(other["id"])
            await session.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    async with database.transaction() as session:
        await session.allow(statement=ALL_ROWS_SECONDS, lock=ALL_ROWS_SECONDS)
        await session.execute(VISIT_SHARDS_IN_TURN)
        for statement in DELETE_OTHER_MODELS:
            await session.execute(statement, {"model": registered.id})
    await wait_for_open_writers(database, "search_queue")  # the statistics know the old models
    async with database.transaction() as session:
        await session.execute(DELETE_OTHER_QUEUES, {"model": registered.id})


@asynccontextmanager
async def _without_timeouts(database: Database) -> AsyncIterator["Connection[Any]"]:
    """Opens a direct connection in autocommit, without statement and lock timeouts.

    CREATE INDEX and DROP INDEX need CONCURRENTLY here: then they do not block other sessions, even
    if they wait for a long time.
    """
    async with database.direct() as session:
        for bound in ("statement_timeout", "lock_timeout"):
            await session.execute(f"SET {bound} = 0")
        yield session
