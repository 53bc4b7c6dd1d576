"""`python -m app migrate`."""

import logging
from typing import Annotated

import typer

from app.commands.database import running_database
from app.migrations import upgrade
from app.ops.logging import configure_logging
from migrations.operations import DEFAULT_WAIT_SECONDS
from shared.cli import exit_on_user_error

commands = typer.Typer()


@commands.command()
def migrate(
    wait: Annotated[
        float,
        typer.Option(
            min=1, max=7 * 86_400, help="Seconds that a concurrent index waits for a transaction"
        ),
    ] = DEFAULT_WAIT_SECONDS,
) -> None:
    """Bring the database up to this code. Safe to run in many places at once."""
    with exit_on_user_error(), running_database() as settings:
        assert settings.database_url
        configure_logging(settings)
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
        upgrade(settings.database_direct_url or settings.database_url, wait_seconds=wait)
