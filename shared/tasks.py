"""Background tasks, as a feature declares them.

Each piece of work is a row, written in the caller's transaction (transactional outbox). A task only
looks for such rows, so a lost message, a crash or a dead worker loses no work, and any number of
processes may work on the same rows (`FOR UPDATE SKIP LOCKED`). `NOTIFY` wakes a task early; it also
looks at a regular interval.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

import structlog
from fastapi import FastAPI
from sqlalchemy import Executable, text
from sqlmodel import Field, SQLModel

from shared.db import database_of
from shared.db.errors import CONNECT_ERRORS
from shared.metrics import TASK_FAILURES
from shared.problems import Unavailable

RESTART_SECONDS = 1.0
BATCH_SECONDS = 300.0  # longer than any batch takes, unless a dependency never answers
RECORD_START = text("""
INSERT INTO periodic_tasks AS last (name, started_at) VALUES (:name, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET started_at = excluded.started_at
WHERE last.started_at NOT BETWEEN excluded.started_at - CAST(:period AS interval)
    AND excluded.started_at + CAST(:period AS interval)
RETURNING name
""")
"""A start that lies further ahead than a period was recorded before the clock was set back."""

log = structlog.get_logger(__name__)


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


async def supervise(name: str, run: Callable[[], Awaitable[object]]) -> NoReturn:
    """Runs a function that has no end until it is cancelled: any other end is logged and counted,
    and it is started again."""
    while True:
        error: BaseException | None = None
        try:
            await run()
        except (Exception, asyncio.CancelledError) as raised:
            error = raised
        if is_cancelled():
            raise asyncio.CancelledError
        TASK_FAILURES.labels(name).inc()
        if isinstance(error, (Unavailable, *CONNECT_ERRORS)):
            log.warning("task_restarted", task=name, error=repr(error))
        else:
            log.error("task_restarted", task=name, exc_info=error)
        await asyncio.sleep(RESTART_SECONDS)


def is_cancelled() -> bool:
    """Returns whether this asyncio task was cancelled, even if another exception hid that."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
