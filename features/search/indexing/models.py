"""The models whose embeddings are stored: the active one, and any that a reindex is building."""

from dataclasses import dataclass

from sqlalchemy import text

from features.search.embedding import EmbeddingModel
from features.search.indexing.documents import (
    DISABLE_TIMEOUTS,
    LOCK_MODELS,
    change_language,
    sweep,
)
from shared.db import Database, ReadSession

SELECT_MODELS = text("SELECT id, provider, name, dimension, active FROM search_models ORDER BY id")
INSERT_MODEL = text("""
INSERT INTO search_models (provider, name, dimension) VALUES (:provider, :name, :dimension)
ON CONFLICT (provider, name, dimension) DO UPDATE SET name = excluded.name
RETURNING id, active
""")
ENQUEUE_DOCUMENTS = text("""
INSERT INTO search_queue (item_id, model_id, owner_id)
SELECT d.item_id, :model, d.owner_id FROM search_documents AS d
WHERE NOT EXISTS (
    SELECT FROM search_embeddings AS e
    WHERE e.owner_id = d.owner_id AND e.item_id = d.item_id AND e.model_id = :model
    AND e.text_hash = d.text_hash)
ON CONFLICT DO NOTHING
""")
UNPARK_ENTRIES = text("""
UPDATE search_queue
SET attempts = 0, parked = false, error = NULL, next_attempt_at = statement_timestamp()
WHERE model_id = :model AND parked
""")
CREATE_INDEX = text("SELECT search_create_index(:model, :dimension)")
UNPARK_MARKS = text("""
UPDATE search_pending SET attempts = 0, parked = false, error = NULL,
    next_attempt_at = statement_timestamp()
WHERE parked
""")
HAS_ACTIVE_MODEL = text("SELECT EXISTS (SELECT FROM search_models WHERE active)")
ACTIVATE_MODEL = text("UPDATE search_models SET active = true WHERE id = :model")


@dataclass(frozen=True)
class RegisteredModel:
    """A row of `search_models`. Searches use the embeddings of the active model."""

    id: int
    model: EmbeddingModel
    active: bool


async def registered_models(session: ReadSession) -> list[RegisteredModel]:
    """Returns all models whose embeddings are stored."""
    return [
        RegisteredModel(row.id, EmbeddingModel(row.provider, row.name, row.dimension), row.active)
        for row in await session.fetch(SELECT_MODELS)
    ]


async def active_model(session: ReadSession) -> RegisteredModel | None:
    """Returns the model whose embeddings are searched; None until the first start prepared one."""
    return next(
        (registered for registered in await registered_models(session) if registered.active), None
    )


async def prepare(database: Database, model: EmbeddingModel, language: str) -> None:
    """Prepares the index on the first start: indexes the existing items and activates `model`.

    Does nothing if a model is already active. Writers index their own items, so one pass over the
    others is enough. An interrupted run starts again, and skips the items it has indexed.

    Raises:
        Unavailable: a transaction has been writing to `items` for more than two minutes.
    """
    async with database.transaction() as session:
        if await session.fetch_value(HAS_ACTIVE_MODEL):
            return
    await change_language(database, language)
    await sweep(database)
    registered = await add_model(database, model)
    async with database.transaction() as session:
        await session.execute(LOCK_MODELS)
        if not await session.fetch_value(HAS_ACTIVE_MODEL):
            values = {"model": registered.id, "dimension": model.dimension}
            await session.fetch(CREATE_INDEX, values)
            await session.execute(ACTIVATE_MODEL, {"model": registered.id})


async def add_model(database: Database, model: EmbeddingModel) -> RegisteredModel:
    """Registers a model, and queues every document that has no embedding of it yet.

    From then on changed items are queued for this model too: the statistics task, which queues
    them, reads the models each time. Rows that were parked are tried again.
    """
    async with database.transaction() as session:
        await session.execute(LOCK_MODELS)
        [row] = await session.fetch(INSERT_MODEL, vars(model))
    async with database.transaction() as session:
        await session.execute(DISABLE_TIMEOUTS)
        for statement in (ENQUEUE_DOCUMENTS, UNPARK_ENTRIES, UNPARK_MARKS):
            await session.execute(statement, {"model": row.id})
    return RegisteredModel(row.id, model, row.active)


def hnsw_index_name(model_id: int) -> str:
    return f"ix_search_embeddings_model_{model_id:d}"
