"""`python -m app serve`."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import structlog
import typer

from app.development import prepare_database, running_database
from app.main import create_app
from app.server import listen, serve, serve_with_reload, serve_with_workers
from app.server.supervision import exit_with_parent
from shared.feature import Feature
from shared.settings import Settings, load_settings

commands = typer.Typer()
log = structlog.get_logger(__name__)

Port = Annotated[int, typer.Option(envvar="PORT", min=1, max=65535)]


@commands.command("serve")
def serve_command(
    host: Annotated[str, typer.Option(envvar="HOST")] = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(envvar="WEB_CONCURRENCY", min=1, max=64)] = 1,
    reload: Annotated[
        bool, typer.Option(help="Start anew when a file of the code changes.")
    ] = False,
    until_parent_exits: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve the API. In development this also brings up PostgreSQL, migrates and loads a demo."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if until_parent_exits:
        exit_with_parent()
    settings = load_settings(Settings)
    listener = listen(host, port)
    with running_database(settings) as ready:
        app = create_app(ready)
        if ready.env == "dev":
            prepare_database(ready, app.state.features)

        def announce() -> None:
            _announce(ready, app.state.features, f"http://{host}:{port}")

        if not reload and workers == 1:
            serve(app, listener, announce)
            return
        os.environ["APP_DATABASE_URL"] = str(ready.database_url)
        if reload:
            announce()
            serve_with_reload(listener)
        else:
            serve_with_workers(listener, workers, announce)


def _announce(settings: Settings, features: Sequence[Feature], address: str) -> None:
    if settings.env == "dev":
        typer.echo(_welcome(address, features))
    else:
        log.info("serving", address=address)


def _welcome(address: str, features: Sequence[Feature]) -> str:
    hints = [feature.demo.hint.format(address=address) for feature in features if feature.demo]
    lines = [f"Tessera answers at {address}   (documentation: {address}/docs)", *hints]
    return "\n".join(f"  {line}" for line in ["", *"\n".join(lines).splitlines()]) + "\n"
