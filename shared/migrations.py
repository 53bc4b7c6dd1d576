"""Alembic, driven from Python: one branch of revisions a feature, in `migrations/<feature>/`."""

from collections.abc import Iterable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

ROOT = Path(__file__).resolve().parent.parent / "migrations"


def alembic_config(url: str = "", branches: Iterable[str] = ()) -> Config:
    """The configuration: `url` is a libpq URL. The revisions are those of the named branches,
    or of every folder of `migrations/`."""
    folders = [ROOT / branch for branch in branches] or sorted(
        path for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"
    )
    config = Config()
    config.set_main_option("script_location", str(ROOT))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(map(str, folders)))
    config.attributes["url"] = url
    return config


def upgrade(url: str, branches: Iterable[str] = ()) -> None:
    """Migrates the named branches, as if there were no others, or everything. Safe to run at
    once in many places. Blocks: call it in a thread where an event loop runs."""
    command.upgrade(alembic_config(url, branches), "heads")


def has_revisions(branch: str) -> bool:
    """Whether there are migrations of this feature: one without tables needs none."""
    return any((ROOT / branch).glob("*.py"))


def load_revisions(branches: Iterable[str] = ()) -> ScriptDirectory:
    """The code's revisions, read from disk now and not at the first probe."""
    revisions = ScriptDirectory.from_config(alembic_config(branches=branches))
    revisions.get_heads()
    return revisions


def pending(connection: Connection, revisions: ScriptDirectory) -> list[str]:
    """The heads of the code that the database has not reached.

    A database with revisions that this code does not know was migrated by newer code: in a
    rollout, old code serves on. Then only a branch that is recorded as older is pending.
    """
    known = {script.revision for script in revisions.walk_revisions()}
    current = set(MigrationContext.configure(connection).get_current_heads())
    ahead = current - known
    # The database records no head that another depends on: it is implied.
    reached = {script.revision for script in revisions.get_all_current(tuple(current & known))}

    def behind(head: str) -> bool:
        branch = {script.revision for script in revisions.iterate_revisions(head, "base")}
        return head not in reached and bool(branch & current or not ahead)

    return [head for head in revisions.get_heads() if behind(head)]
