"""Prometheus metrics, at `/metrics`: those of this process, or of all processes that serve one
port; and from PostgreSQL, the backlogs of the background tasks and the shards of each worker of
Citus.

Their names are in app/ops/metrics.py and shared/metrics.py, those of a feature in the feature.
"""

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from asyncpg import PostgresError
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Metric,
    generate_latest,
    start_http_server,
)
from prometheus_client.multiprocess import MultiProcessCollector

from app.distribution import shards_by_worker
from app.ops.metrics import BACKLOG_AGE, BACKLOG_ROWS, CONNECTIONS, CONNECTIONS_MAX, SHARDS
from shared.db import Database
from shared.problems import Unavailable
from shared.settings import ConfigurationError
from shared.state import state_of
from shared.tasks import Task, supervise

BACKLOG_SECONDS = 5.0  # at most one query in this time, however often we are scraped
BACKLOG_TIMEOUT_SECONDS = 1.0
POOLS_SECONDS = 5.0

log = structlog.get_logger(__name__)
router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """The counts of this process and the backlogs in the database, for Prometheus."""
    await _read_database(request.app)
    return Response(generate_latest(_registry()), media_type=CONTENT_TYPE_LATEST)


def serve_metrics(port: int) -> None:
    """Serves `/metrics` on a port from a thread, for a process without another HTTP server.

    Raises:
        ConfigurationError: the port is taken, or we may not use it.
    """
    try:
        start_http_server(port, registry=_registry())
    except OSError as error:
        raise ConfigurationError(
            f"port {port} cannot be used for metrics ({error.strerror})"
        ) from None


def _registry() -> CollectorRegistry:
    """Returns the metrics of this process, or of all that share `PROMETHEUS_MULTIPROC_DIR`."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    LiveProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


class LiveProcessCollector(MultiProcessCollector):
    """Collects the metrics that several processes have written to the files of one folder.

    The counters of a process that has ended stay; its gauges of connections in use are removed.
    """

    def collect(self) -> Iterable[Metric]:
        for file in Path(self._path).glob("gauge_live*.db"):
            if not _is_running(int(file.stem.rpartition("_")[2])):
                file.unlink(missing_ok=True)  # another process may delete it as well
        return super().collect()  # type: ignore[no-any-return, no-untyped-call]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


@asynccontextmanager
async def pool_sampler(database: Database) -> AsyncIterator[None]:
    """Updates the gauges of the pools every 5 seconds, as another process may be scraped."""

    async def watch() -> None:
        while True:
            _show_pools(database)
            await asyncio.sleep(POOLS_SECONDS)

    _show_pools(database)
    watcher = asyncio.create_task(supervise("pool_sampler", watch))
    try:
        yield
    finally:
        watcher.cancel()


def _show_pools(database: Database) -> None:
    for name, (in_use, size) in database.pool_usage().items():
        CONNECTIONS.labels(name).set(in_use)
        CONNECTIONS_MAX.labels(name).set(size)


async def _read_database(app: FastAPI) -> None:
    state = state_of(app)
    if time.monotonic() < state.backlogs_read_at + BACKLOG_SECONDS:
        return
    state.backlogs_read_at = time.monotonic()
    session = state.database.read()
    shards: dict[str, int] = {}
    try:
        async with asyncio.timeout(BACKLOG_TIMEOUT_SECONDS):
            shards = await shards_by_worker(session)  # before what fails while a worker is away
            for task in state.tasks:
                if task.backlog is not None:
                    (row,) = await session.fetch(task.backlog)
                    _show(task, *row)
    except (Unavailable, PostgresError, TimeoutError) as error:
        for task in state.tasks:  # NaN is better than an outdated number
            if task.backlog is not None:
                _show(task, math.nan, math.nan, math.nan)
        log.warning("backlogs_not_read", error=repr(error))
    state.shards = dict.fromkeys(state.shards, math.nan) | shards
    for worker, count in state.shards.items():
        SHARDS.labels(worker).set(count)


def _show(task: Task, waiting: float, parked: float, seconds: float) -> None:
    BACKLOG_ROWS.labels(task.name, "waiting").set(waiting)
    BACKLOG_ROWS.labels(task.name, "parked").set(parked)
    BACKLOG_AGE.labels(task.name).set(seconds)
