"""The commands for developers: a new feature, and a change of its tables."""

import importlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from alembic.script import Script

from app.development import running_database
from app.discovery import branches_of, find_features
from app.main import create_app
from app.migrations import ROOT, MigrationError, load_revisions
from app.removal import remove
from app.scaffold.affected import affected_by, changed_files
from app.scaffold.documents import write_parts
from shared.feature import FeatureError
from shared.settings import ConfigurationError, Settings, load_settings

MEND = "Mend it, or accept it there: ACCEPTED = (…,)  # why"

commands = typer.Typer()


@commands.command("new-feature")
def new_feature(
    name: Annotated[str, typer.Argument(help="Many of them, like orders")],
    singular: Annotated[str | None, typer.Option(help="One of them, where it is not plain")] = None,
) -> None:
    """Write a new feature: a private resource with its tests and its first migration."""
    from app.scaffold.generating import write_feature  # it needs development dependencies

    settings = load_settings(Settings)
    files = write_feature(create_app(settings), name, singular)
    feature = files[0].parts[1]
    importlib.invalidate_caches()
    files += write_parts(create_app(settings), [feature])
    for path in files:
        typer.echo(path)
    typer.echo(f"Now: make test feature={feature}; before you push: make test changed=origin/main")


@commands.command("remove-feature")
def remove_feature(
    name: Annotated[str, typer.Argument(help="A feature that no other depends on")],
) -> None:
    """Remove a feature: its tables from the development database, and its folders."""
    with running_database() as settings:
        if settings.env == "prod":
            raise ConfigurationError("this deletes code; in production run `drop-feature`")
        for line in remove(settings, name):
            typer.echo(line)


@commands.command("keep-openapi")
def keep_openapi() -> None:
    """Write the OpenAPI document into the tests again, after a wanted change of the API; print the
    files that have changed."""
    for path in write_parts(create_app(load_settings(Settings))):
        typer.echo(path)


@commands.command("keep-definitions")
def keep_definitions() -> None:
    """Write each `migrations/*/definitions.sql` again, after a revision by hand or a
    merge; print the files that have changed."""
    from app.scaffold.definitions import write_definitions

    with running_database() as settings:
        url = settings.database_direct_url or settings.database_url
        assert url
        for branch in branches_of(find_features()):
            if path := write_definitions(url, branch):
                typer.echo(path.relative_to(ROOT.parent))


@commands.command()
def affected(
    base: Annotated[str, typer.Argument(help="What the change is to be compared with")],
) -> None:
    """Print the features whose suites a change can affect, or `all`, or nothing."""
    names = affected_by(changed_files(base), find_features())
    typer.echo("all" if names is None else " ".join(names))


@commands.command()
def migration(
    feature: Annotated[str, typer.Argument(help="The feature whose tables have changed")],
    message: Annotated[str | None, typer.Argument(help='What changes, like "add colour"')] = None,
    amend: Annotated[bool, typer.Option(help="Write the last revision anew")] = False,
    empty: Annotated[bool, typer.Option(help="Write it though no table has changed")] = False,
) -> None:
    """Write a revision on a feature's branch, and report its unsafe operations on a live table."""
    from app.scaffold.amending import amend_revision
    from app.scaffold.definitions import write_definitions
    from app.scaffold.revising import write_revision

    with running_database() as settings:
        url = settings.database_direct_url or settings.database_url
        assert url
        if amend:
            script = amend_revision(url, feature, message)
        elif message:
            script = write_revision(url, feature, message, empty=empty)
        else:
            raise FeatureError('say what changes: make migration feature=… message="add colour"')
        with suppress(MigrationError):  # to be mended by hand first, then `make definitions`
            write_definitions(url, feature)
    path = Path(script.path).relative_to(ROOT.parent)
    _refuse_unsafe(
        [script],
        f"{path} is written. {MEND}\nOr change the tables and write it anew:"
        f" make migration feature={feature} amend=yes. Or delete it",
    )


@commands.command("lint-migrations")
def lint_migrations() -> None:
    """Report unsafe operations on a live table in all revisions; exit status 1 if there is any."""
    _refuse_unsafe(load_revisions().walk_revisions())


def _refuse_unsafe(scripts: Iterable[Script], advice: str = MEND) -> None:
    from app.scaffold.linting import unsafe_operations

    if unsafe := [line for script in scripts for line in unsafe_operations(script)]:
        typer.echo("\n".join([*unsafe, advice]), err=True)
        raise typer.Exit(1)
