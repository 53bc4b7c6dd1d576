"""`python -m app migrate`."""

import logging

import typer

from app.commands.database import running_database
from shared.cli import plain_errors
from shared.db.migrations import upgrade
from shared.ops.logging import configure_logging

commands = typer.Typer()


@commands.command()
def migrate() -> None:
    """Bring the database up to this code. Safe to run in many places at once."""
    with plain_errors(), running_database() as settings:
        assert settings.database_url
        configure_logging(settings)
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
        upgrade(settings.database_direct_url or settings.database_url)
