"""`python -m app`: the commands of the kernel and of the features."""

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer
from fastapi import FastAPI

from app import doctor, scaffold
from app.main import create_app
from app.server import listen, serve, serve_with_workers
from shared.commands import plain_errors, running_database
from shared.demo import load_demo, welcome
from shared.features import find_features
from shared.health import heartbeat
from shared.logging import configure_logging
from shared.metrics import serve_metrics
from shared.migrations import upgrade
from shared.settings import Settings, load_settings
from shared.supervision import exit_with_parent
from shared.tasks import Task, drain, running

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
log = structlog.get_logger(__name__)

Port = Annotated[int, typer.Option(envvar="PORT", min=1, max=65535)]


@cli.callback()
def describe() -> None:
    """Users, items and hybrid semantic search on one PostgreSQL."""


@cli.command("serve")
def serve_command(
    host: Annotated[str, typer.Option(envvar="HOST")] = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(envvar="WEB_CONCURRENCY", min=1, max=64)] = 1,
    until_parent_exits: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve the API. In development this also brings up PostgreSQL, migrates and loads a demo."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if until_parent_exits:
        exit_with_parent()
    with plain_errors():
        settings = load_settings(Settings)
        listener = listen(host, port)
        with running_database(settings) as ready:
            app = create_app(ready)
            if ready.env == "dev":
                _prepare(ready)

            def announce() -> None:
                _announce(ready, f"http://{host}:{port}")

            if workers == 1:
                serve(app, listener, announce)
            else:
                os.environ["APP_DATABASE_URL"] = str(ready.database_url)
                serve_with_workers(listener, workers, announce)


def _prepare(settings: Settings) -> None:
    assert settings.database_url
    upgrade(settings.database_direct_url or settings.database_url)
    asyncio.run(load_demo(settings))


def _announce(settings: Settings, address: str) -> None:
    if settings.env == "dev":
        typer.echo(welcome(address))
    else:
        log.info("serving", address=address)


@cli.command()
def migrate() -> None:
    """Bring the database up to this code. Safe to run in many places at once."""
    with plain_errors(), running_database(load_settings(Settings)) as settings:
        assert settings.database_url
        configure_logging(settings)
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
        upgrade(settings.database_direct_url or settings.database_url)


@cli.command()
def worker(
    heartbeat_file: Annotated[
        Path | None,
        typer.Option("--heartbeat", help="Touch this file every 5 s while the database answers."),
    ] = None,
) -> None:
    """Run the background work without serving HTTP; any number of these may run."""
    with plain_errors(), running_database(load_settings(Settings)) as settings:
        if settings.metrics_port:
            serve_metrics(settings.metrics_port)
        own = [heartbeat(heartbeat_file)] if heartbeat_file else []
        asyncio.run(_run_until_stopped(create_app(settings), own))


async def _run_until_stopped(app: FastAPI, own: list[Task]) -> None:
    """Runs the application's tasks until SIGINT or SIGTERM.

    `own` are the tasks that only this process can do, such as its heartbeat.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with app.router.lifespan_context(app), running(app, own, drain):
        log.info("working", tasks=[task.name for task in app.state.tasks])
        await stopped.wait()


@cli.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    with plain_errors():
        settings = load_settings(Settings).model_copy(
            update={"database_url": "postgresql://unused"}
        )
        typer.echo(json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False))


def _add_feature_commands() -> None:
    with plain_errors():
        for feature in find_features():
            if feature.commands:
                for command in feature.commands.registered_commands:
                    cli.registered_commands.append(command)


cli.add_typer(doctor.commands)
cli.add_typer(scaffold.commands)
_add_feature_commands()
