"""The background tasks of search. A write to an item wakes them with NOTIFY."""

from fastapi import FastAPI
from sqlalchemy import text

from features.search.engine import engine_of
from features.search.indexing import embed_due, fold_changes
from shared.db import database_of
from shared.tasks import Task

CHANNEL = "search"
SWEEP_SECONDS = 5.0
BACKLOG = text("""
SELECT count(*) FILTER (WHERE NOT parked), count(*) FILTER (WHERE parked),
    greatest(0, extract(epoch FROM
        clock_timestamp() - min(next_attempt_at) FILTER (WHERE NOT parked)))
FROM search_queue
""")


async def _fold(app: FastAPI) -> int:
    return await fold_changes(database_of(app))


async def _embed(app: FastAPI) -> int:
    engine = engine_of(app)
    return await embed_due(database_of(app), engine.embedders, engine.language)


fold = Task(name="search_statistics", run=_fold, every=SWEEP_SECONDS, channel=CHANNEL)
embed = Task(
    name="search_embeddings",
    run=_embed,
    every=SWEEP_SECONDS,
    channel=CHANNEL,
    backlog=BACKLOG,
)
