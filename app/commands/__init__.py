"""`python -m app`: the commands of the kernel and of the features."""

import typer

from app.commands import (
    database,
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
from app.discovery import find_features
from shared.cli import exit_on_user_error

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@cli.callback()
def main(context: typer.Context) -> None:
    """Users, items and hybrid semantic search on one PostgreSQL."""
    context.obj = context.obj or database.database_of_command


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
