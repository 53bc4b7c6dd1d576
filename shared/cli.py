"""An open database for the commands of features."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import typer

from shared.db import Database

Answer = TypeVar("Answer")


def run_with_database(
    context: typer.Context, work: Callable[[Database], Awaitable[Answer]]
) -> Answer:
    """Runs a command's work with an open database.

    `python -m app` puts into `context.obj` a function that opens the database. It prints a
    `Problem`, and an error of the settings or the database, as a plain line
    (app/command_errors.py).
    """

    async def main(database: Database) -> Answer:
        try:
            return await work(database)
        finally:
            await database.dispose()

    database_of_command: Callable[[], AbstractContextManager[Database]] = context.obj
    with database_of_command() as database:
        return asyncio.run(main(database))
