"""Alembic, driven from Python: one branch of revisions a feature, in `migrations/<feature>/`."""

from collections.abc import Iterable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.engine import make_url

ROOT = Path(__file__).resolve().parent.parent / "migrations"
ADVISORY_LOCK = 7_265_001  # one migrator at a time, whoever starts


def alembic_config(url: str = "") -> Config:
    """The configuration: `url` is a libpq URL; every folder of `migrations/` is a location."""
    branches = sorted(path for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._")
    config = Config()
    config.set_main_option("script_location", str(ROOT))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(map(str, branches)))
    config.attributes["url"] = make_url(url).set(drivername="postgresql+asyncpg") if url else None
    return config


def upgrade(url: str, branches: Iterable[str] = ()) -> None:
    """Migrates the named branches and what they depend on, or everything. Safe to run at once
    in many places. Blocks: call it in a thread where an event loop runs."""
    config = alembic_config(url)
    targets = [f"{branch}@head" for branch in branches] or ["heads"]
    for target in targets:
        command.upgrade(config, target)


def expected_heads() -> dict[str, frozenset[str]]:
    """The code's heads, each with the revisions that it builds on."""
    scripts = ScriptDirectory.from_config(alembic_config())
    return {
        head: frozenset(script.revision for script in scripts.iterate_revisions(head, "base"))
        for head in scripts.get_heads()
    }


def pending(connection: Connection, expected: dict[str, frozenset[str]]) -> list[str]:
    """The heads of the code that the database has not reached.

    A branch that is ahead of the code is not pending: in a rollout, old code serves on a
    schema that is already new.
    """
    current = set(MigrationContext.configure(connection).get_current_heads())
    ahead = current - set().union(*expected.values())
    return [
        head
        for head, history in expected.items()
        if head not in current and (current & history or not ahead)
    ]
