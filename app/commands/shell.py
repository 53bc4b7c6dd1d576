"""`python -m app shell`: Python on the database, with `await` at the prompt."""

import ast
import asyncio
import code
import inspect
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import typer
from sqlalchemy import select, text

from app.development import running_database
from app.discovery import find_features, new_database
from app.ops.logging import configure_logging
from app.ops.sql import log_statements
from shared.db import Database
from shared.feature import Feature

commands = typer.Typer()


@commands.command()
def shell() -> None:
    """Open a Python prompt with the database, a session, and each feature's handlers."""
    with running_database() as settings:
        configure_logging(settings)
        features = find_features()
        database = new_database(settings, features)
        with log_statements(settings), asyncio.Runner() as runner:
            runner.run(_connect(database))
            console = Console(runner, database, features)
            console.interact(banner=_banner(features), exitmsg="")
            runner.run(database.dispose())


async def _connect(database: Database) -> None:
    """Fails before the prompt where the database cannot be used."""
    async with database.transaction():
        pass


def _banner(features: Sequence[Feature]) -> str:
    names = ", ".join(feature.name for feature in features)
    return (
        "database; session, a transaction that is committed after each input that awaits; select"
        f" and text, of SQLAlchemy; and the handlers, tables and schemas of {names}"
    )


class Console(code.InteractiveConsole):
    """Python's prompt, whose inputs may await. Each input is one transaction, so that
    none stays open between two inputs."""

    def __init__(
        self, runner: asyncio.Runner, database: Database, features: Sequence[Feature]
    ) -> None:
        names = {feature.name: names_of(feature.name) for feature in features}
        at_hand = {"database": database, "session": database.read(), "select": select, "text": text}
        super().__init__(at_hand | names)
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.runner, self.database = runner, database
        _complete_names(self.locals)

    def runcode(self, code: CodeType) -> None:
        if not code.co_flags & inspect.CO_COROUTINE:
            super().runcode(code)
            return
        try:
            self.runner.run(self._run(code))
        except SystemExit:
            raise
        except BaseException:  # Ctrl-C among them
            self.showtraceback()

    async def _run(self, code: CodeType) -> None:
        async with self.database.transaction() as session:
            self.locals["session"] = session
            await FunctionType(code, self.locals)()


def names_of(feature: str) -> SimpleNamespace:
    """Returns the public names that a feature's modules of handlers, tables and schemas define."""
    return SimpleNamespace(
        **{
            name: value
            for path, module in sorted(sys.modules.items())
            if path.startswith(f"features.{feature}.")
            and {"handlers", "tables", "schemas"} & set(path.split("."))
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == path and not name.startswith("_")
        }
    )


def _complete_names(names: Any) -> None:
    """Completes names at the prompt by Tab, where Python was built with readline."""
    with suppress(ImportError):
        import readline
        import rlcompleter

        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
