"""`python -m app migrate` and `drop-feature`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from app.development import running_database
from app.migrations import upgrade
from app.ops.logging import configure_logging
from app.removal import drop_tables
from migrations.operations import DEFAULT_WAIT_SECONDS

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
    with _migrated_database() as url:
        upgrade(url, wait_seconds=wait)


@commands.command("drop-feature")
def drop_feature(
    name: Annotated[str, typer.Argument(help="The feature, which this code still has")],
) -> None:
    """Drop the tables of a feature. Run it with the last release that has the feature, once every
    process is of a release that has not."""
    with _migrated_database() as url:
        had = drop_tables(url, name)
    typer.echo(f"dropped the tables of {name}" if had else f"the database has nothing of {name}")


@contextmanager
def _migrated_database() -> Iterator[str]:
    """Yields the URL of the database to migrate, and shows what Alembic logs."""
    with running_database() as settings:
        assert settings.database_url
        configure_logging(settings)
        logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
        yield settings.database_direct_url or settings.database_url
