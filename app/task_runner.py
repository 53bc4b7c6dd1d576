"""Collects the background tasks of all features, and runs them: in an API process or a worker."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any

import structlog
from asyncpg import Connection
from fastapi import FastAPI
from opentelemetry import trace

from app.discovery import subscriptions_of
from app.ops.metrics import TASK_ROWS, TASK_SECONDS
from app.outbox import delete_old_changes, outbox_tasks
from shared.db import database_of
from shared.db.errors import database_cause, is_worker_lost
from shared.db.pool import expiry
from shared.feature import Feature, FeatureError
from shared.metrics import TASK_FAILURES
from shared.problems import Unavailable
from shared.tasks import BATCH_SECONDS, PeriodicTask, Task, is_cancelled, supervise
from shared.web.idempotency import delete_expired_keys

log = structlog.get_logger(__name__)
tracer = trace.get_tracer("tessera")

DUE_CHECK_SECONDS = 30.0  # a periodic task starts at most this late
RECONNECT_SECONDS = 1.0
PING_SECONDS = 30.0
PING_TIMEOUT_SECONDS = 5.0
Dispatcher = Callable[[FastAPI, Task], Awaitable[object]]
"""Called when a task is due: `run_until_idle` does the work here, a queue passes it on."""


def tasks_of(features: Sequence[Feature]) -> list[Task]:
    """Returns the tasks of the kernel and of the features, the periodic ones among them.

    Raises:
        FeatureError: two have the same name.
    """
    subscriptions = subscriptions_of(features)
    periodic = [
        Task(name=each.name, run=each.run_if_due, every=min(each.every, DUE_CHECK_SECONDS))
        for each in periodic_tasks_of(features)
    ]
    declared = chain(*(feature.tasks for feature in features))
    tasks = [delete_expired_keys, *declared, *outbox_tasks(subscriptions), *periodic]
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            raise FeatureError(f"{count} background tasks have the name {name!r}")
    return tasks


def periodic_tasks_of(features: Sequence[Feature]) -> list[PeriodicTask]:
    """Returns the periodic tasks of the kernel and of the features."""
    declared = chain(*(feature.periodic_tasks for feature in features))
    return [delete_old_changes(subscriptions_of(features)), *declared]


@asynccontextmanager
async def task_runner(
    app: FastAPI, tasks: Sequence[Task], dispatch: Dispatcher
) -> AsyncIterator[None]:
    """Runs the tasks until the block ends; a batch in progress is cancelled and rolled back."""
    wake = {task.name: asyncio.Event() for task in tasks}
    running = {task.name: partial(_work, app, task, dispatch, wake[task.name]) for task in tasks}
    if any(task.channel for task in tasks):
        running["listen"] = partial(_listen, app, tasks, wake)
    workers = [asyncio.create_task(supervise(name, run)) for name, run in running.items()]
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
        TASK_ROWS.labels(task.name).inc(done)
        TASK_SECONDS.labels(task.name).observe(time.perf_counter() - started)
    return done


def report_failure(task: Task, error: Exception) -> None:
    """Counts and logs a failed batch. An unavailable dependency is logged as a warning."""
    TASK_FAILURES.labels(task.name).inc()
    if isinstance(error, Unavailable):
        log.warning("task_postponed", task=task.name, reason=error.detail)
    elif is_worker_lost(error):
        log.warning("task_postponed", task=task.name, reason=str(database_cause(error)))
    else:
        log.error("task_failed", task=task.name, exc_info=error)


async def _work(app: FastAPI, task: Task, dispatch: Dispatcher, wake: asyncio.Event) -> None:
    while True:
        wake.clear()
        try:
            await dispatch(app, task)
        except Exception as error:
            report_failure(task, error)
            if is_cancelled():
                return
            await asyncio.sleep(RECONNECT_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(task.every):
                await wake.wait()


async def _listen(app: FastAPI, tasks: Sequence[Task], wake: dict[str, asyncio.Event]) -> None:
    """Sets a task's event on each NOTIFY, and the events of all tasks after each connect."""
    channels: dict[str, list[asyncio.Event]] = {}
    for task in tasks:
        if task.channel:
            channels.setdefault(task.channel, []).append(wake[task.name])

    def on_notify(_connection: Any, _pid: int, channel: str, _payload: object) -> None:
        for event in channels[channel]:
            event.set()

    while True:
        async with database_of(app).direct() as connection:
            for channel in channels:
                await connection.add_listener(channel, on_notify)
            for event in wake.values():
                event.set()
            await _wait_for_end(connection)
        await asyncio.sleep(RECONNECT_SECONDS)


async def _wait_for_end(connection: "Connection[Any]") -> None:
    """Returns when the connection is closed, or too old.

    Raises:
        TimeoutError: the server no longer answers.
    """
    closed, expires_at = asyncio.Event(), expiry()
    connection.add_termination_listener(lambda _: closed.set())
    while not closed.is_set() and time.monotonic() < expires_at:
        with suppress(TimeoutError):
            async with asyncio.timeout(PING_SECONDS):
                await closed.wait()
        if not closed.is_set():
            await connection.execute("SELECT 1", timeout=PING_TIMEOUT_SECONDS)
