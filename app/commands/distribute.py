"""`python -m app distribute`."""

import asyncio

import typer

from app.development import running_database
from app.distribution import distribute

commands = typer.Typer()


@commands.command("distribute")
def distribute_command() -> None:
    """Distribute the tables by owner over the workers of Citus (app/deploy/citus/README.md). Run it
    again after a migration that has added a table, or after a failure."""

    async def run(url: str) -> None:
        async for line in distribute(url):
            typer.echo(line)

    with running_database() as settings:
        assert settings.database_url
        asyncio.run(run(settings.database_direct_url or settings.database_url))
