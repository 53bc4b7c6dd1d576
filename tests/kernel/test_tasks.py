"""Background tasks that fail, are cancelled, or are woken by a notification."""

import asyncio

import asyncpg
from fastapi import FastAPI

from app.task_runner import run_until_idle, task_runner
from shared.problems import Unavailable
from shared.tasks import Task
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


async def test_an_unavailable_database_is_logged_as_a_warning(app: FastAPI) -> None:
    lines, tried = capture_log(), asyncio.Event()

    async def find_nothing(_app: FastAPI) -> int:
        tried.set()
        raise Unavailable("The database cannot be reached")

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
