"""Helpers for the commands of `python -m app`: error messages, and an open database."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn, TypeVar

import typer
from asyncpg import (
    DataError,
    IntegrityConstraintViolationError,
    PostgresError,
    PostgresSyntaxError,
    UndefinedColumnError,
    UndefinedTableError,
)
from sqlalchemy.exc import DBAPIError

from shared.db import Database
from shared.db.errors import database_cause
from shared.feature import FeatureError
from shared.problems import Problem
from shared.settings import ConfigurationError

Answer = TypeVar("Answer")
BUGS = (DataError, IntegrityConstraintViolationError, PostgresSyntaxError, UndefinedColumnError)
"""PostgreSQL's errors for wrong statements: bugs in our code, shown with a traceback."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Prints errors that the user can fix as plain lines on stderr, and exits with status 1."""
    try:
        yield
    except (ConfigurationError, FeatureError, Problem) as error:
        _fail(str(error))
    except OSError as error:
        _fail(str(error) if error.filename else f"the database cannot be used: {error}")
    except (PostgresError, DBAPIError) as error:
        cause = database_cause(error)
        if isinstance(cause, UndefinedTableError):
            _fail("the database has no tables; run `python -m app migrate`")
        if not isinstance(cause, OSError | PostgresError) or isinstance(cause, BUGS):
            raise
        _fail(f"the database cannot be used: {cause}")


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        typer.echo(f"error: {line}", err=True)
    sys.exit(1)


def run_with_database(
    context: typer.Context, work: Callable[[Database], Awaitable[Answer]]
) -> Answer:
    """Runs a command's work with an open database, and prints errors as `exit_on_user_error` does.

    `python -m app` puts into `context.obj` how the database is found.
    """

    async def main(database: Database) -> Answer:
        try:
            return await work(database)
        finally:
            await database.dispose()

    database_of_command: Callable[[], AbstractContextManager[Database]] = context.obj
    with exit_on_user_error(), database_of_command() as database:
        return asyncio.run(main(database))
