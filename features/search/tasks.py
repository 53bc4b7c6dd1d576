"""The background tasks of search. A write to an item wakes them."""

from fastapi import FastAPI
from sqlalchemy import text

from features.search.indexing import SEARCH_CHANNEL, embed_due, update_statistics
from features.search.runtime import runtime_of
from shared.db import database_of
from shared.tasks import Task

POLL_SECONDS = 5.0
SWEEP_SECONDS = 3_600.0
SELECT_BACKLOG = text("""
SELECT count(*) FILTER (WHERE NOT parked), count(*) FILTER (WHERE parked),
    greatest(0, extract(epoch FROM
        clock_timestamp() - min(next_attempt_at) FILTER (WHERE NOT parked)))
FROM search_queue
""")


async def _update_statistics(app: FastAPI) -> int:
    return await update_statistics(database_of(app))


async def _embed(app: FastAPI) -> int:
    runtime = runtime_of(app)
    return await embed_due(database_of(app), runtime.embedders, runtime.language)


statistics_task = Task(
    name="search_statistics", run=_update_statistics, every=POLL_SECONDS, channel=SEARCH_CHANNEL
)
embedding_task = Task(
    name="search_embeddings",
    run=_embed,
    every=POLL_SECONDS,
    channel=SEARCH_CHANNEL,
    backlog=SELECT_BACKLOG,
)
