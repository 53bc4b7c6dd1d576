"""Background tasks: what happens when one fails, and when they are told to stop."""

import asyncio

from fastapi import FastAPI

from shared.errors import Unavailable
from shared.tasks import Task, drain, running
from tests.probing import captured_log


async def test_a_task_that_fails_while_it_is_cancelled_stops_all_the_same(app: FastAPI) -> None:
    """As when the database dies first: to roll back fails, and takes the cancellation's place."""
    begun = asyncio.Event()

    async def fail_to_roll_back(_app: FastAPI) -> int:
        begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            raise RuntimeError("the connection is gone")

    task = Task(name="probe", drain=fail_to_roll_back, every=600)
    async with asyncio.timeout(20):
        async with running(app, [task], drain):
            await begun.wait()


async def test_a_database_that_is_away_is_no_error(app: FastAPI) -> None:
    lines, tried = captured_log(), asyncio.Event()

    async def find_nothing(_app: FastAPI) -> int:
        tried.set()
        raise Unavailable("The database cannot be reached")

    task = Task(name="probe", drain=find_nothing, every=600)
    async with running(app, [task], drain):
        await tried.wait()
        await asyncio.sleep(0)
    assert "task_postponed" in lines.getvalue()
    assert "Traceback" not in lines.getvalue()
