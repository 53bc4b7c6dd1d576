"""The background tasks of search. A write to an item wakes them."""

import structlog
from fastapi import FastAPI
from sqlalchemy import text

from features.search.indexing import SEARCH_CHANNEL, embed_due, sweep, update_statistics
from features.search.runtime import runtime_of
from shared.db import database_of
from shared.tasks import PeriodicTask, Task

POLL_SECONDS = 5.0
SWEEP_SECONDS = 86_400.0
SELECT_BACKLOG = """
SELECT count(*) FILTER (WHERE NOT parked), count(*) FILTER (WHERE parked),
    greatest(0, extract(epoch FROM
        statement_timestamp() - min(next_attempt_at) FILTER (WHERE NOT parked)))
FROM {table}
"""

log = structlog.get_logger(__name__)


async def _update_statistics(app: FastAPI) -> int:
    return await update_statistics(database_of(app))


async def _embed(app: FastAPI) -> int:
    runtime = runtime_of(app)
    return await embed_due(database_of(app), runtime.embedders, runtime.language)


async def _sweep(app: FastAPI) -> None:
    if done := await sweep(database_of(app)):
        log.warning("index_repaired", documents=done)


statistics_task = Task(
    name="search_statistics",
    run=_update_statistics,
    every=POLL_SECONDS,
    channel=SEARCH_CHANNEL,
    backlog=text(SELECT_BACKLOG.format(table="search_pending")),
)
embedding_task = Task(
    name="search_embeddings",
    run=_embed,
    every=POLL_SECONDS,
    channel=SEARCH_CHANNEL,
    backlog=text(SELECT_BACKLOG.format(table="search_queue")),
)
# For items that were changed past this application: by psql, or with a restore.
sweep_task = PeriodicTask(name="search_sweep", run=_sweep, every=SWEEP_SECONDS)
