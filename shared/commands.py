"""Helpers for the commands of `python -m app`: error messages, and a running database."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
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

from shared.database import Database, open_database
from shared.embedded import EmbeddedPostgresError, embedded_postgres, ensure_database
from shared.errors import Problem, database_cause
from shared.features import FeatureError
from shared.settings import DATA, ConfigurationError, Settings, load_settings

Answer = TypeVar("Answer")
BUGS = (DataError, IntegrityConstraintViolationError, PostgresSyntaxError, UndefinedColumnError)
"""PostgreSQL's errors for wrong statements: bugs in our code, shown with a traceback."""

DATABASE = "tessera"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Prints errors that the user can fix as plain lines on stderr, and exits with status 1."""
    try:
        yield
    except (ConfigurationError, EmbeddedPostgresError, FeatureError, Problem) as error:
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


@contextmanager
def running_database(settings: Settings) -> Iterator[Settings]:
    """Yields the settings with the URL of a running database.

    Where no URL is set, in development, it starts the embedded PostgreSQL under `.data/`, or
    shares the one that already runs.
    """
    if settings.database_url:
        yield settings
        return
    with embedded_postgres(DATA / "postgres") as server:
        url = asyncio.run(ensure_database(server, DATABASE))
        yield settings.model_copy(update={"database_url": url})


def run_with_database(work: Callable[[Database], Awaitable[Answer]]) -> Answer:
    """Runs a command's work with an open database; errors are printed by `plain_errors`."""

    async def main(settings: Settings, url: str) -> Answer:
        database = open_database(url, settings)
        try:
            return await work(database)
        finally:
            await database.dispose()

    with plain_errors(), running_database(load_settings(Settings)) as settings:
        assert settings.database_url
        return asyncio.run(main(settings, settings.database_url))
