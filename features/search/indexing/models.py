"""The models that embeddings are kept for: one is searched, others are being built."""

import asyncio
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from features.search.embedding import Model
from shared.database import Database

BATCH = 500
SETTLE_ATTEMPTS, SETTLE_SECONDS = 300, 0.1
FIRST_ID = "00000000-0000-0000-0000-000000000000"

LOCK = text("SELECT pg_advisory_xact_lock(7265003)")
KNOWN = text("SELECT id, provider, name, dimension, active FROM search_models ORDER BY id")
ADD = text("""
INSERT INTO search_models (provider, name, dimension, active) VALUES (:provider, :name, :dimension,
    NOT EXISTS (SELECT FROM search_models WHERE active))
ON CONFLICT (provider, name, dimension) DO UPDATE SET name = excluded.name
RETURNING id, active, CAST(pg_current_xact_id() AS text) AS xid
""")
SETTLED = text("SELECT pg_snapshot_xmin(pg_current_snapshot()) > CAST(CAST(:xid AS text) AS xid8)")
NO_TIMEOUT = text("SET LOCAL statement_timeout = 0")
ENQUEUE = text("""
INSERT INTO search_queue (item_id, model_id, owner_id)
SELECT d.item_id, :model, d.owner_id FROM search_documents AS d
WHERE NOT EXISTS (
    SELECT FROM search_embeddings AS e
    WHERE e.item_id = d.item_id AND e.model_id = :model AND e.text_hash = d.text_hash)
ON CONFLICT DO NOTHING
""")
INDEX_MISSING = text("""
SELECT max(last) AS last, search_index(max(ids)) FROM (
    SELECT array_agg(id ORDER BY id) AS ids, (array_agg(id ORDER BY id DESC))[1]::text AS last
    FROM (
        SELECT i.id FROM items AS i WHERE i.id > :after AND NOT EXISTS (
            SELECT FROM search_documents AS d WHERE d.item_id = i.id)
        ORDER BY i.id LIMIT :batch
    ) AS missing
) AS batch HAVING max(ids) IS NOT NULL
""")
LANGUAGE = text("SELECT obj_description('search'::regconfig::oid, 'pg_ts_config')")
SET_LANGUAGE = text("SELECT search_set_language(CAST(:language AS regconfig), :complete)")


@dataclass(frozen=True)
class KnownModel:
    """A model in the database. Its embeddings are searched if it is the active one."""

    id: int
    model: Model
    active: bool


async def known_models(session: AsyncConnection) -> list[KnownModel]:
    """All models that embeddings are kept for."""
    rows = (await session.execute(KNOWN)).all()
    return [
        KnownModel(row.id, Model(row.provider, row.name, row.dimension), row.active) for row in rows
    ]


async def active_model(session: AsyncConnection) -> KnownModel | None:
    """The model whose embeddings are searched; None until the first start has prepared it."""
    return next((known for known in await known_models(session) if known.active), None)


async def prepare(database: Database, model: Model, language: str) -> None:
    """The first start: indexes what was there before, and makes `model` the one that is searched.

    Triggers index what is written meanwhile, so one pass over the items is enough. A pass that
    was cut off begins again, and finds less to do.
    """
    async with database.write.begin() as session:
        await session.execute(LOCK)
        if await active_model(session):
            return
        await set_language(session, language, complete=True)
    await _index_missing(database)
    await add_model(database, model)


async def current_language(session: AsyncConnection) -> str | None:
    """The language that all documents are indexed in; None while it changes."""
    language: str | None = (await session.execute(LANGUAGE)).scalar_one()
    return language


async def set_language(session: AsyncConnection, language: str, *, complete: bool) -> None:
    """Changes the language that documents are indexed in from now on.

    `complete` says that none is left that was indexed in another one.
    """
    await session.execute(SET_LANGUAGE, {"language": language, "complete": complete})


async def add_model(database: Database, model: Model) -> KnownModel:
    """Keeps embeddings for a model from now on, and puts every document into its queue. The
    first model of all is searched from now on.
    """
    async with database.write.begin() as session:
        await session.execute(LOCK)
        row = (await session.execute(ADD, vars(model))).one()
        if row.active:
            await session.execute(text(f"CREATE INDEX IF NOT EXISTS {hnsw_index(row.id, model)}"))
    # Who began to write before the model was there did not queue for it.
    for _ in range(SETTLE_ATTEMPTS):
        async with database.write.connect() as session:
            if (await session.execute(SETTLED, {"xid": row.xid})).scalar_one():
                break
        await asyncio.sleep(SETTLE_SECONDS)
    async with database.write.begin() as session:
        await session.execute(NO_TIMEOUT)
        await session.execute(ENQUEUE, {"model": row.id})
    return KnownModel(row.id, model, row.active)


def hnsw_index(model_id: int, model: Model) -> str:
    """The definition of a model's vector index (Malkov & Yashunin 2018), behind CREATE INDEX.

    More edges than pgvector's defaults: where an owner has many items that are nearly the same, a
    graph of fewer strands some searches (recall@10 of 0.94 with m = 16, and 0.99 with 24).
    """
    return (
        f"ix_search_embeddings_model_{model_id:d} ON search_embeddings "
        f"USING hnsw ((embedding::halfvec({model.dimension:d})) halfvec_cosine_ops) "
        f"WITH (m = 24, ef_construction = 200) WHERE model_id = {model_id:d}"
    )


async def _index_missing(database: Database) -> None:
    after: str | None = FIRST_ID
    while after:
        async with database.write.begin() as session:
            batch = {"after": after, "batch": BATCH}
            found = (await session.execute(INDEX_MISSING, batch)).one_or_none()
            after = found.last if found else None
