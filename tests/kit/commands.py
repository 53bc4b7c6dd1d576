"""Runs commands of `python -m app` in this process: some seconds faster than a subprocess."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import pytest
from typer.testing import CliRunner, Result

from shared.feature import Feature
from tests.kit.applications import features_under_test

SECRET_KEY = "a secret for tests, 32 bytes or more"

Command = Callable[..., Awaitable[Result]]


def run_command(*arguments: object, stdin: str = "", **variables: str) -> Result:
    """Runs `python -m app` with these arguments and environment variables.

    An async test uses the fixture `command` instead, because a command starts its own event loop.
    """
    return _invoke(arguments, stdin, variables, None)


def _invoke(
    arguments: Sequence[object],
    stdin: str,
    variables: Mapping[str, str],
    features: Sequence[Feature] | None,
) -> Result:
    from app.commands import cli  # late: it imports every feature, and one may be broken
    from app.development import database_of_command

    words = [str(argument) for argument in arguments]
    found = partial(database_of_command, features)
    return CliRunner().invoke(cli, words, input=stdin, env=variables, obj=found)


@pytest.fixture
def command(database_url: str, pytestconfig: pytest.Config) -> Command:
    """Runs `python -m app` with the test's database, and the features under test:
    `await command("create-admin", email)`."""
    variables = {"APP_DATABASE_URL": database_url, "APP_SECRET_KEY": SECRET_KEY}

    features = features_under_test(pytestconfig)

    async def run(*arguments: object, stdin: str = "") -> Result:
        return await asyncio.to_thread(_invoke, arguments, stdin, variables, features)

    return run
