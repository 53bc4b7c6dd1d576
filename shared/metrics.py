"""Numbers for Prometheus, at `/metrics`: what this process has counted, and what waits in
PostgreSQL for any process. Counters are declared with prometheus-client where they count.
"""

import asyncio
import time

import structlog
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from shared.database import database_of, reading
from shared.errors import Unavailable
from shared.tasks import Task

BACKLOG_SECONDS = 5.0  # the database is asked no more often, however often we are
BACKLOG_TIMEOUT_SECONDS = 1.0
CONNECTIONS = Gauge("tessera_database_connections", "Connections to PostgreSQL in use", ("pool",))
CONNECTIONS_MAX = Gauge(
    "tessera_database_connections_max", "Connections that a pool may open", ("pool",)
)
BACKLOG_ROWS = Gauge(
    "tessera_backlog_rows", "Rows that wait for a background task", ("task", "state")
)
BACKLOG_AGE = Gauge(
    "tessera_backlog_age_seconds", "For how long the oldest of them has been due", ("task",)
)

log = structlog.get_logger(__name__)
router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """What this process has counted, and what waits in the database, for Prometheus."""
    _read_pools(request.app)
    await _read_backlogs(request.app)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _read_pools(app: FastAPI) -> None:
    for name, engine in database_of(app).engines.items():
        CONNECTIONS.labels(name).set(engine.pool.checkedout())  # type: ignore[attr-defined]  # a QueuePool
        CONNECTIONS_MAX.labels(name).set(engine.pool.size())  # type: ignore[attr-defined]


async def _read_backlogs(app: FastAPI) -> None:
    if time.monotonic() < getattr(app.state, "backlogs_known_until", 0.0):
        return
    app.state.backlogs_known_until = time.monotonic() + BACKLOG_SECONDS
    try:
        async with asyncio.timeout(BACKLOG_TIMEOUT_SECONDS), reading(database_of(app)) as session:
            for task in app.state.tasks:
                if task.backlog:
                    _show(task, *(await session.execute(text(task.backlog))).one())
    except (Unavailable, SQLAlchemyError, TimeoutError) as error:
        BACKLOG_ROWS.clear()  # rather no number than one that is not true any more
        BACKLOG_AGE.clear()
        log.warning("backlogs_not_read", error=repr(error))


def _show(task: Task, waiting: int, parked: int, seconds: float) -> None:
    BACKLOG_ROWS.labels(task.name, "waiting").set(waiting)
    BACKLOG_ROWS.labels(task.name, "parked").set(parked)
    BACKLOG_AGE.labels(task.name).set(seconds)
