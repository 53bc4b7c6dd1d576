"""The errors of the command line that a user can fix, as plain lines."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

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

from shared.db.errors import database_cause
from shared.feature import FeatureError
from shared.problems import Problem
from shared.settings import ConfigurationError

BUGS = (DataError, IntegrityConstraintViolationError, PostgresSyntaxError, UndefinedColumnError)
"""PostgreSQL's errors for wrong statements: bugs in our code, shown with a traceback."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Prints errors that the user can fix as plain lines on stderr, and exits with status 1."""
    try:
        yield
    except BrokenPipeError:  # of `python -m app … | head`: Typer ends without a word
        raise
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
