"""Runs commands of `python -m app` in this process: some seconds faster than a subprocess."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from typer.testing import CliRunner, Result

SECRET_KEY = "a secret for tests, 32 bytes or more"

Command = Callable[..., Awaitable[Result]]


def run_command(*arguments: object, stdin: str = "", **variables: str) -> Result:
    """Runs `python -m app` with these arguments and environment variables.

    An async test uses the fixture `command` instead, because a command starts its own event loop.
    """
    from app.commands import cli  # late: it imports every feature, and one may be broken

    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli, words, input=stdin, env=variables)


@pytest.fixture
def command(database_url: str) -> Command:
    """Runs `python -m app` with the test's database: `await command("create-admin", email)`."""
    variables = {"APP_DATABASE_URL": database_url, "APP_SECRET_KEY": SECRET_KEY}

    async def run(*arguments: object, stdin: str = "") -> Result:
        return await asyncio.to_thread(partial(run_command, *arguments, stdin=stdin, **variables))

    return run
