"""`python -m app migrate`."""

import logging

import typer

from app.development import running_database
from app.migrations import upgrade
from app.ops.logging import configure_logging
from shared.cli import exit_on_user_error

commands = typer.Typer()


@commands.command()
def migrate() -> None:
    """Bring the database up to this code. Safe to run in many places at once."""
    with exit_on_user_error(), running_database() as settings:
        assert settings.database_url
        configure_logging(settings)
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
        upgrade(settings.database_direct_url or settings.database_url)
