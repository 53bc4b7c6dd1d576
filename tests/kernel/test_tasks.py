"""Background tasks that fail, are cancelled, or are woken by a notification."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from fastapi import FastAPI

from app.main import create_app
from app.task_runner import run_until_idle, task_runner
from shared import tasks
from shared.db import database_of
from shared.db.connecting import NoHostInRole
from shared.problems import Unavailable
from shared.settings import Settings
from shared.tasks import Task, supervise
from tests.app_helpers import capture_log
from tests.kit import eventually, within

END_THE_LISTENER = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE 'LISTEN%'
"""


async def test_a_task_that_fails_while_it_is_cancelled_stops_all_the_same(app: FastAPI) -> None:
    """As when the database stops first: the error of the rollback replaces the cancellation."""
    begun = asyncio.Event()

    async def fail_to_roll_back(_app: FastAPI) -> int:
        begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            raise RuntimeError("the connection is gone")

    task = Task(name="probe", run=fail_to_roll_back, every=600)
    async with within(20, "the end of the task"), task_runner(app, [task], run_until_idle):
        await begun.wait()


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("The database cannot be reached"),
        asyncpg.ConnectionFailureError("connection to the remote node worker2:5432 failed"),
    ],
    ids=["database", "worker of Citus"],
)
async def test_an_unavailable_database_is_logged_as_a_warning(
    app: FastAPI, error: Exception
) -> None:
    lines, tried = capture_log(), asyncio.Event()

    async def find_nothing(_app: FastAPI) -> int:
        tried.set()
        raise error

    task = Task(name="probe", run=find_nothing, every=600)
    async with task_runner(app, [task], run_until_idle):
        async with within(20, "the first run of the task"):
            await tried.wait()
        await eventually(lambda: "task_postponed" in lines.getvalue(), "the line of the task")
    assert "Traceback" not in lines.getvalue()


async def test_a_notification_wakes_a_task_also_after_the_connection_was_lost(
    app: FastAPI, database_url: str
) -> None:
    batches: asyncio.Queue[None] = asyncio.Queue()

    async def find_nothing(_app: FastAPI) -> int:
        batches.put_nowait(None)
        return 0

    task = Task(name="probe", run=find_nothing, every=600, channel="probe")
    connection = await asyncpg.connect(database_url)
    async with (
        within(30, "a batch for each notification"),
        task_runner(app, [task], run_until_idle),
    ):
        for _ in range(2):
            await batches.get()  # one at the start, one once it listens
        for statement in ("NOTIFY probe", END_THE_LISTENER, "NOTIFY probe"):
            await connection.execute(statement)
            await batches.get()
    await connection.close()


@pytest.mark.parametrize(
    "error",
    [NoHostInRole("none"), asyncpg.InternalClientError("a bug"), asyncio.CancelledError(), None],
    ids=repr,
)
async def test_a_supervised_task_ends_only_when_it_is_cancelled(
    error: BaseException | None,
    events: list[Mapping[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "RESTART_SECONDS", 0.0)
    starts = asyncio.Semaphore(0)

    async def end() -> None:
        starts.release()
        if error:
            raise error

    running = asyncio.create_task(supervise("probe", end))
    async with within(20, "three starts"):
        for _ in range(3):
            await starts.acquire()
    assert [event["task"] for event in events if event["event"] == "task_restarted"][:2] == [
        "probe",
        "probe",
    ]
    running.cancel()
    async with within(20, "the end of the task"):
        await asyncio.wait([running])
    assert running.cancelled()


async def test_what_a_process_runs_for_ever_is_supervised(settings: Settings) -> None:
    """Each task, the kernel's and the features': an exception in it does not end it."""
    before = asyncio.all_tasks()
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        names = {
            task.get_coro().__name__  # type: ignore[union-attr]
            for task in asyncio.all_tasks() - before
            if "/site-packages/" not in task.get_coro().cr_code.co_filename  # type: ignore[union-attr]
        }
    assert names == {"supervise"}


async def test_listening_begins_again_once_a_host_takes_changes(
    app: FastAPI, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a fail-over no host takes changes, for some seconds."""
    batches: asyncio.Queue[None] = asyncio.Queue()
    direct, failures = database_of(app).direct, 2
    monkeypatch.setattr(tasks, "RESTART_SECONDS", 0.05)

    @asynccontextmanager
    async def fail_first() -> AsyncIterator[Any]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise NoHostInRole("none")
        async with direct() as connection:
            yield connection

    async def find_nothing(_app: FastAPI) -> int:
        batches.put_nowait(None)
        return 0

    monkeypatch.setattr(database_of(app), "direct", fail_first)
    task = Task(name="probe", run=find_nothing, every=600, channel="probe")
    async with (
        within(30, "a batch for each notification"),
        task_runner(app, [task], run_until_idle),
    ):
        for _ in range(2):
            await batches.get()  # one at the start, one once it listens
        connection = await asyncpg.connect(database_url)
        await connection.execute("NOTIFY probe")
        await batches.get()
        await connection.close()
