"""`python -m app migrate` and `drop-feature`."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import structlog
import typer

from app.development import running_database
from app.discovery import find_features
from app.migrations import load_revisions, schema_state, upgrade
from app.ops.logging import configure_logging
from app.removal import drop_tables
from app.schema_drift import Difference, find_differences
from migrations.operations import DEFAULT_WAIT_SECONDS
from shared.db.connecting import connector
from shared.db.database import new_engine

log = structlog.get_logger("migrations")
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
        for difference in asyncio.run(_read_differences(url)):
            log.warning("schema_differs", subject=difference.subject, advice=difference.advice)


async def _read_differences(url: str) -> list[Difference]:
    engine = new_engine(connector(url, None))
    try:
        async with engine.connect() as connection:
            schema = await connection.run_sync(schema_state, load_revisions())
            return await connection.run_sync(find_differences, find_features(), schema)
    finally:
        await engine.dispose()


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
