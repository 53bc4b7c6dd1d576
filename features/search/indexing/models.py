"""The models that embeddings are kept for: one is searched, others are being built."""

from dataclasses import dataclass

from sqlalchemy import text

from features.search.embedding import Model
from features.search.indexing.documents import (
    LOCK,
    NO_TIMEOUTS,
    change_language,
    index_missing,
    settle,
)
from shared.database import Database
from shared.reading import Reading

KNOWN = text("SELECT id, provider, name, dimension, active FROM search_models ORDER BY id")
ADD = text("""
INSERT INTO search_models (provider, name, dimension) VALUES (:provider, :name, :dimension)
ON CONFLICT (provider, name, dimension) DO UPDATE SET name = excluded.name
RETURNING id, active
""")
ENQUEUE = text("""
INSERT INTO search_queue (item_id, model_id, owner_id)
SELECT d.item_id, :model, d.owner_id FROM search_documents AS d
WHERE NOT EXISTS (
    SELECT FROM search_embeddings AS e
    WHERE e.item_id = d.item_id AND e.model_id = :model AND e.text_hash = d.text_hash)
ON CONFLICT DO NOTHING
""")
TRY_AGAIN = text("""
UPDATE search_queue
SET attempts = 0, parked = false, error = NULL, next_attempt_at = clock_timestamp()
WHERE model_id = :model AND parked
""")
PREPARED = text("SELECT EXISTS (SELECT FROM search_models WHERE active)")
ACTIVATE = text("UPDATE search_models SET active = true WHERE id = :model")


@dataclass(frozen=True)
class KnownModel:
    """A model in the database. Its embeddings are searched if it is the active one."""

    id: int
    model: Model
    active: bool


async def known_models(session: Reading) -> list[KnownModel]:
    """All models that embeddings are kept for."""
    return [
        KnownModel(row.id, Model(row.provider, row.name, row.dimension), row.active)
        for row in await session.fetch(KNOWN)
    ]


async def active_model(session: Reading) -> KnownModel | None:
    """The model whose embeddings are searched; None until the first start has prepared it."""
    return next((known for known in await known_models(session) if known.active), None)


async def prepare(database: Database, model: Model, language: str) -> None:
    """The first start: indexes what was there before, and makes `model` the one that is searched.

    Triggers index what is written meanwhile, so one pass over the items is enough. A start that
    was cut off begins again, and finds less to do.

    Raises:
        Unavailable: somebody has been writing to items for too long.
    """
    async with database.write.connect() as session:
        if (await session.execute(PREPARED)).scalar_one():
            return
    await change_language(database, language)
    await index_missing(database)
    known = await add_model(database, model)
    async with database.write.begin() as session:
        await session.execute(LOCK)
        if not (await session.execute(PREPARED)).scalar_one():
            await session.execute(text(f"CREATE INDEX IF NOT EXISTS {hnsw_index(known.id, model)}"))
            await session.execute(ACTIVATE, {"model": known.id})


async def add_model(database: Database, model: Model) -> KnownModel:
    """Keeps embeddings for a model from now on, and puts every document that lacks one into its
    queue; what was parked is tried again.

    Raises:
        Unavailable: somebody has been writing to items for too long.
    """
    async with database.write.begin() as session:
        await session.execute(LOCK)
        row = (await session.execute(ADD, vars(model))).one()
    await settle(database)  # who began to write before the model was there did not queue for it
    async with database.write.begin() as session:
        await session.execute(NO_TIMEOUTS)
        for statement in (ENQUEUE, TRY_AGAIN):
            await session.execute(statement, {"model": row.id})
    return KnownModel(row.id, model, row.active)


def hnsw_index(model_id: int, model: Model) -> str:
    """The definition of a model's vector index (Malkov & Yashunin 2018), behind CREATE INDEX.

    More edges than pgvector's defaults, chosen among more: items that are nearly the same take all
    the edges of each other, and a search then ends among those it met first. Of 300,000 rows, the
    first 1,000 of a search have a recall@10 of 0.97 with ef_construction = 200 (more edges, m = 32,
    do not help), and of 0.99 with 400. The index is as large; a search takes about a fifth longer,
    a build twice as long, and a vector 3 ms to insert, not 1.6.
    """
    return (
        f"{hnsw_index_name(model_id)} ON search_embeddings "
        f"USING hnsw ((embedding::halfvec({model.dimension:d})) halfvec_cosine_ops) "
        f"WITH (m = 24, ef_construction = 400) WHERE model_id = {model_id:d}"
    )


def hnsw_index_name(model_id: int) -> str:
    return f"ix_search_embeddings_model_{model_id:d}"
