"""Background tasks, which process rows that wait in PostgreSQL, batch by batch.

Each piece of work is a row, written in the caller's transaction (transactional outbox). A task only
looks for such rows, so a lost message, a crash or a dead worker loses no work, and any number of
processes may work on the same rows (`FOR UPDATE SKIP LOCKED`). `NOTIFY` wakes a task early; it also
looks at a regular interval.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from asyncpg import Connection
from fastapi import FastAPI
from opentelemetry import trace
from prometheus_client import Counter, Histogram
from sqlalchemy import Executable, text
from sqlmodel import Field, SQLModel

from shared.db import database_of
from shared.db.errors import CONNECT_ERRORS
from shared.problems import Unavailable

log = structlog.get_logger(__name__)
tracer = trace.get_tracer("tessera")

RECONNECT_SECONDS = 1.0
BATCH_SECONDS = 300.0  # longer than any batch takes, unless a dependency never answers
PING_SECONDS = 30.0
PING_TIMEOUT_SECONDS = 5.0
ROWS = Counter("tessera_task_rows_total", "Rows that a background task has done", ("task",))
SECONDS = Histogram(
    "tessera_task_batch_seconds",
    "How long a batch of a background task took that found something to do",
    ("task",),
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
FAILURES = Counter(
    "tessera_task_failures_total", "Batches of a background task that failed", ("task",)
)
RECORD_START = text("""
INSERT INTO periodic_tasks AS last (name, started_at) VALUES (:name, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at
WHERE last.started_at <= excluded.started_at - CAST(:period AS interval)
RETURNING name
""")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of background work.

    `run` processes one batch in its own transaction and returns the number of rows; it is
    called again until it returns 0. Then the task waits for a `NOTIFY` on `channel`, or for
    `every` seconds. `backlog` is a query for the metrics: how many rows wait, how many are
    parked (dead letters), and for how many seconds the oldest has been due.
    """

    name: str
    run: Callable[[FastAPI], Awaitable[int]]
    every: float
    channel: str | None = None
    backlog: Executable | None = None


class PeriodicTaskStart(SQLModel, table=True):
    """When a periodic task last started, by the clock of PostgreSQL."""

    __tablename__ = "periodic_tasks"
    name: str = Field(primary_key=True)
    started_at: datetime


@dataclass(frozen=True, kw_only=True)
class PeriodicTask:
    """Work that all processes together start once in `every` seconds, the first time at once.

    Periods in which no process ran are not made up for, and a run that fails or is cut off, after
    BATCH_SECONDS or by a stop, waits for the next period."""

    name: str
    run: Callable[[FastAPI], Awaitable[None]]
    every: float

    async def run_if_due(self, app: FastAPI) -> int:
        """Runs it unless a process has started it in this period; returns the number of runs."""
        period = {"name": self.name, "period": timedelta(seconds=self.every)}
        async with database_of(app).transaction() as session:
            if not await session.fetch(RECORD_START, period):
                return 0
        await self.run(app)
        return 1


Dispatcher = Callable[[FastAPI, Task], Awaitable[object]]
"""Called when a task is due: `run_until_idle` does the work here, a queue passes it on."""


@asynccontextmanager
async def task_runner(
    app: FastAPI, tasks: Sequence[Task], dispatch: Dispatcher
) -> AsyncIterator[None]:
    """Runs the tasks until the block ends; a batch in progress is cancelled and rolled back."""
    wake = {task.name: asyncio.Event() for task in tasks}
    workers = [asyncio.create_task(_work(app, task, dispatch, wake[task.name])) for task in tasks]
    workers.append(asyncio.create_task(_listen(app, tasks, wake)))
    try:
        yield
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def run_until_idle(app: FastAPI, task: Task) -> int:
    """Runs one task until no rows are left, and returns how many it processed."""
    total = 0
    while done := await run_batch(app, task):
        total += done
    return total


async def run_batch(app: FastAPI, task: Task) -> int:
    """Processes one batch, and returns the number of rows."""
    started = time.perf_counter()
    with tracer.start_as_current_span(f"task {task.name}"):
        async with asyncio.timeout(BATCH_SECONDS):
            done = await task.run(app)
    if done:
        ROWS.labels(task.name).inc(done)
        SECONDS.labels(task.name).observe(time.perf_counter() - started)
    return done


def report_failure(task: Task, error: Exception) -> None:
    """Counts and logs a failed batch. An unavailable dependency is logged as a warning."""
    FAILURES.labels(task.name).inc()
    if isinstance(error, Unavailable):
        log.warning("task_postponed", task=task.name, reason=error.detail)
    else:
        log.error("task_failed", task=task.name, exc_info=error)


async def _work(app: FastAPI, task: Task, dispatch: Dispatcher, wake: asyncio.Event) -> None:
    while True:
        wake.clear()
        try:
            await dispatch(app, task)
        except Exception as error:
            report_failure(task, error)
            if _cancelled():
                return
            await asyncio.sleep(RECONNECT_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(task.every):
                await wake.wait()


def _cancelled() -> bool:
    """Returns whether this asyncio task was cancelled, even if another exception hid that."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


async def _listen(app: FastAPI, tasks: Sequence[Task], wake: dict[str, asyncio.Event]) -> None:
    """Sets a task's event on each NOTIFY, and the events of all tasks after each connect."""
    channels: dict[str, list[asyncio.Event]] = {}
    for task in tasks:
        if task.channel:
            channels.setdefault(task.channel, []).append(wake[task.name])

    def on_notify(_connection: Any, _pid: int, channel: str, _payload: object) -> None:
        for event in channels[channel]:
            event.set()

    while channels:
        with suppress(*CONNECT_ERRORS):
            async with database_of(app).direct() as connection:
                for channel in channels:
                    await connection.add_listener(channel, on_notify)
                for event in wake.values():
                    event.set()
                await _lost(connection)
        await asyncio.sleep(RECONNECT_SECONDS)


async def _lost(connection: "Connection[Any]") -> None:
    """Returns when the connection is closed.

    Raises:
        TimeoutError: the server no longer answers.
    """
    closed = asyncio.Event()
    connection.add_termination_listener(lambda _: closed.set())
    while not closed.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(PING_SECONDS):
                await closed.wait()
        if not closed.is_set():
            await connection.execute("SELECT 1", timeout=PING_TIMEOUT_SECONDS)
