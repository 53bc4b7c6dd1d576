"""Tasks that run once in a period, in all processes together."""

import asyncio

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.task_runner import run_until_idle, task_runner, tasks_of
from shared.db import database_of
from shared.feature import Feature
from shared.tasks import PeriodicTask
from tests.app_helpers import capture_log
from tests.kit import eventually

START_AN_HOUR_AGO = text(
    "UPDATE periodic_tasks SET started_at = started_at - interval '61 minutes'"
)
START_IN_A_YEAR = text("UPDATE periodic_tasks SET started_at = started_at + interval '1 year'")


async def let_an_hour_pass(app: FastAPI) -> None:
    async with database_of(app).transaction() as session:
        await session.execute(START_AN_HOUR_AGO)


async def test_of_many_processes_one_runs_it_in_each_period(app: FastAPI) -> None:
    runs: list[None] = []

    async def run(_app: FastAPI) -> None:
        runs.append(None)

    task = PeriodicTask(name="probe", run=run, every=3600)
    for period in (1, 2):
        done = await asyncio.gather(*(task.run_if_due(app) for _ in range(8)))
        assert (sum(done), len(runs)) == (1, period)
        await let_an_hour_pass(app)


async def test_it_runs_although_the_clock_was_set_back(app: FastAPI) -> None:
    """A machine whose clock was wrong for a minute, by years, records a start in the future."""

    async def run(_app: FastAPI) -> None:
        pass

    task = PeriodicTask(name="probe", run=run, every=3600)
    assert await task.run_if_due(app) == 1
    async with database_of(app).transaction() as session:
        await session.execute(START_IN_A_YEAR)
    assert [await task.run_if_due(app) for _ in range(2)] == [1, 0]


async def test_a_failed_run_waits_for_the_next_period(app: FastAPI) -> None:
    async def fail(_app: FastAPI) -> None:
        raise RuntimeError("a bug")

    task = PeriodicTask(name="probe", run=fail, every=3600)
    with pytest.raises(RuntimeError):
        await task.run_if_due(app)
    assert await task.run_if_due(app) == 0
    await let_an_hour_pass(app)
    with pytest.raises(RuntimeError):
        await task.run_if_due(app)


async def test_a_feature_s_periodic_task_runs_once_and_its_failure_is_logged(app: FastAPI) -> None:
    lines = capture_log()
    runs: list[None] = []

    async def fail(_app: FastAPI) -> None:
        runs.append(None)
        raise RuntimeError("a bug")

    probe = PeriodicTask(name="probe", run=fail, every=3600)
    feature = Feature(name="probes", periodic_tasks=(probe,))
    tasks = [task for task in tasks_of([feature]) if task.name == "probe"]
    async with task_runner(app, tasks, run_until_idle), task_runner(app, tasks, run_until_idle):
        await eventually(lambda: "task_failed" in lines.getvalue(), "the line of the failure")
    assert len(runs) == 1
