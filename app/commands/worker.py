"""`python -m app worker`."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import structlog
import typer
from fastapi import FastAPI

from app.development import running_database
from app.main import create_app
from app.ops.health import heartbeat
from app.ops.metrics_endpoint import serve_metrics
from app.task_runner import periodic_tasks_of, run_until_idle, task_runner
from shared.settings import ConfigurationError
from shared.tasks import Task

commands = typer.Typer()
log = structlog.get_logger(__name__)


@commands.command()
def worker(
    heartbeat_file: Annotated[
        Path | None,
        typer.Option("--heartbeat", help="Touch this file every 5 s while the database answers."),
    ] = None,
) -> None:
    """Run the background work without serving HTTP; any number of these may run."""
    with running_database() as settings:
        if settings.metrics_port:
            serve_metrics(settings.metrics_port)
        own = [heartbeat(heartbeat_file)] if heartbeat_file else []
        asyncio.run(_run_until_stopped(create_app(settings), own))


@commands.command("run-task")
def run_task(
    name: Annotated[str, typer.Argument(help="The task's name, such as delete_dead_letters")],
) -> None:
    """Run a background task once, now: a periodic one whether or not it is due."""
    with running_database() as settings:
        asyncio.run(_run_once(create_app(settings, run_tasks=False), name))


async def _run_once(app: FastAPI, name: str) -> None:
    periodic = {each.name: each for each in periodic_tasks_of(app.state.features)}
    tasks = {task.name: task for task in app.state.tasks}
    if name not in tasks:
        names = ", ".join(sorted(tasks))
        raise ConfigurationError(f"there is no task {name!r}; there are {names}")
    async with app.router.lifespan_context(app):
        if name in periodic:
            await periodic[name].run(app)
        else:
            await run_until_idle(app, tasks[name])


async def _run_until_stopped(app: FastAPI, own: list[Task]) -> None:
    """Runs the application's tasks until SIGINT or SIGTERM.

    `own` are the tasks that only this process can do, such as its heartbeat.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with app.router.lifespan_context(app), task_runner(app, own, run_until_idle):
        log.info("working", tasks=[task.name for task in app.state.tasks])
        await stopped.wait()
