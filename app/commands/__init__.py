"""`python -m app`: the commands of the kernel and of the features."""

from typing import Any

import typer
from typer.core import TyperGroup

from app.command_errors import exit_on_user_error
from app.commands import (
    development,
    distribute,
    doctor,
    migrate,
    openapi,
    psql,
    reset,
    serve,
    shell,
    worker,
)
from app.development import database_of_command
from app.discovery import find_features


class CommandGroup(TyperGroup):
    """All commands: each prints an error that the user can fix as a plain line, and exits."""

    def invoke(self, ctx: Any) -> Any:
        with exit_on_user_error():
            return super().invoke(ctx)


cli = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@cli.callback()
def main(context: typer.Context) -> None:
    """Users, items and hybrid semantic search on one PostgreSQL."""
    context.obj = context.obj or database_of_command


def _add_feature_commands() -> None:
    with exit_on_user_error():
        for feature in find_features():
            if feature.commands:
                cli.add_typer(feature.commands)


for module in (
    serve,
    migrate,
    distribute,
    worker,
    openapi,
    doctor,
    development,
    shell,
    psql,
    reset,
):
    cli.add_typer(module.commands)
_add_feature_commands()
