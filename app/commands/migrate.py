"""`python -m app migrate`."""

import logging

import typer

from app.commands.database import running_database
from shared.cli import exit_on_user_error
from shared.db.migrations import upgrade
from shared.ops.logging import configure_logging

commands = typer.Typer()


@commands.command()
def migrate() -> None:
    """Bring the database up to this code. Safe to run in many places at once."""
    with exit_on_user_error(), running_database() as settings:
        assert settings.database_url
        configure_logging(settings)
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
        upgrade(settings.database_direct_url or settings.database_url)
