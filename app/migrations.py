"""Alembic, called from Python. Each feature is a branch of revisions in `migrations/<feature>/`."""

from collections.abc import Iterable
from pathlib import Path
from traceback import extract_tb

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from migrations.operations import DEFAULT_WAIT_SECONDS
from shared.db.errors import database_cause
from shared.feature import FeatureError

ROOT = Path(__file__).resolve().parents[1] / "migrations"


class MigrationError(FeatureError):
    """A revision fails. The message has its file and line, and the reason."""


def alembic_config(url: str = "", branches: Iterable[str] = ()) -> Config:
    """Returns Alembic's configuration. `url` is a libpq URL. The revisions are those of the named
    branches, or of every folder of `migrations/`."""
    folders = [ROOT / branch for branch in branches] or sorted(
        path for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"
    )
    config = Config()
    config.set_main_option("script_location", str(ROOT))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(map(str, folders)))
    config.attributes["url"] = url
    return config


def upgrade(
    url: str, branches: Iterable[str] = (), *, wait_seconds: float = DEFAULT_WAIT_SECONDS
) -> None:
    """Migrates the named branches and ignores all others, or migrates everything.

    Concurrent runs are safe. Blocks: call it in a thread where an event loop runs. What blocks
    nobody else, such as CREATE INDEX CONCURRENTLY, waits for another transaction for at most
    `wait_seconds`.

    Raises:
        MigrationError: a revision fails. Those before it are committed.
    """
    config = alembic_config(url, branches)
    config.attributes["wait_seconds"] = wait_seconds
    try:
        command.upgrade(config, "heads")
    except Exception as error:
        if place := _place_in_revision(error):
            raise MigrationError(f"{place}: {_reason(error)}") from error
        raise


def _place_in_revision(error: Exception) -> str | None:
    """Returns the file and line of the revision that raised the error, if one did."""
    for frame in reversed(extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.parent.parent == ROOT and path.suffix == ".py":
            return f"{path.relative_to(ROOT.parent)}:{frame.lineno}"
    return None


def _reason(error: Exception) -> str:
    cause = database_cause(error) if isinstance(error, DBAPIError) else error
    return f"{type(cause).__name__}: {cause}"


def has_revisions(branch: str) -> bool:
    """Returns whether this branch has revisions; a feature without tables needs none."""
    return any((ROOT / branch).glob("*.py"))


def load_revisions(branches: Iterable[str] = ()) -> ScriptDirectory:
    """Reads the code's revisions from disk now, so that the first probe does not have to."""
    revisions = ScriptDirectory.from_config(alembic_config(branches=branches))
    revisions.get_heads()
    return revisions


def head_of(revisions: ScriptDirectory, branch: str) -> str:
    """Returns the last revision of a branch."""
    script = revisions.get_revision(f"{branch}@head")
    assert script, f"the branch {branch!r} has no revisions"
    return script.revision


def pending(connection: Connection, revisions: ScriptDirectory) -> list[str]:
    """Returns the heads of the code that the database has not reached.

    A database with revisions that this code does not know was migrated by newer code: during a
    rollout, old code keeps serving. Then a branch is pending only if the database records one of
    its revisions.
    """
    known = {script.revision for script in revisions.walk_revisions()}
    current = set(MigrationContext.configure(connection).get_current_heads())
    ahead = current - known
    # The database does not record a head that another revision depends on: it is implied.
    reached = {script.revision for script in revisions.get_all_current(tuple(current & known))}

    def behind(head: str) -> bool:
        branch = {script.revision for script in revisions.iterate_revisions(head, "base")}
        return head not in reached and bool(branch & current or not ahead)

    return [head for head in revisions.get_heads() if behind(head)]
