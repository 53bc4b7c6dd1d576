"""Alembic, called from Python. Each feature is a branch of revisions in `migrations/<feature>/`.

The id of a revision begins with its branch: `items_0001`.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.migration import HeadMaintainer, RevisionStep, StampStep
from alembic.script import Script, ScriptDirectory
from alembic.util import to_tuple
from sqlalchemy import Connection, String, column, delete, insert, table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from migrations.operations import DEFAULT_WAIT_SECONDS
from shared.db.errors import database_cause
from shared.db.locks import advisory_lock
from shared.feature import FeatureError

ROOT = Path(__file__).resolve().parents[1] / "migrations"
log = logging.getLogger("alembic.runtime.migration")  # which `migrate` shows
LOCK_POLL_SECONDS = 0.5
TRY_LOCK = text(f"SELECT pg_try_advisory_lock({advisory_lock('app.migrations')})")
VERSION = column("version_num", String)
VERSIONS = table("alembic_version", VERSION)


@dataclass(frozen=True)
class SchemaState:
    """The revisions of a database beside those of this code.

    Attributes:
        pending: the heads of the code that the database has not reached.
        unknown: the revisions of the database that the code does not have: those of newer code, or
            of a feature that has been removed.
        branches: the branches that the database has revisions of.
    """

    pending: list[str]
    unknown: list[str]
    branches: set[str]


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

    Leaves unknown revisions alone: features that have been removed, and branches whose newest
    revision in the database is of newer code. Concurrent runs are safe. Blocks: call it in a thread
    where an event loop runs. A statement that blocks no others, such as CREATE INDEX CONCURRENTLY,
    waits for other transactions for at most `wait_seconds`.

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


async def lock_migrations(connection: AsyncConnection) -> None:
    """Waits until no other process migrates, and takes the lock of the session.

    Waits outside any transaction: a statement that waits for the lock has a snapshot, and
    CREATE INDEX CONCURRENTLY of the process that migrates would wait for that.
    """
    waited = False
    while not (await connection.execute(TRY_LOCK)).scalar():
        await connection.commit()
        if not waited:
            log.info("Waiting for another migration")
        waited = True
        await asyncio.sleep(LOCK_POLL_SECONDS)
    await connection.commit()  # a session-level lock outlives the transaction


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


def downgrade(url: str, branch: str) -> None:
    """Takes back the revisions of a branch, and of those that depend on it."""
    command.downgrade(alembic_config(url), f"{branch}@base")


def branch_of(revision: str) -> str:
    return revision.rsplit("_", 1)[0]


def dependents_of(branch: str, revisions: ScriptDirectory) -> list[str]:
    """Returns the other branches that have a revision which depends on this branch."""
    needing = {
        branch_of(script.revision)
        for script in revisions.walk_revisions()
        for needed in revisions.get_all_current((script.revision,))
        if branch_of(needed.revision) == branch
    }
    return sorted(needing - {branch})


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


def schema_state(connection: Connection, revisions: ScriptDirectory) -> SchemaState:
    """Compares the revisions of the database with those of the code.

    Code that is older than the database keeps serving, as in a rollout.
    """
    rows = set(MigrationContext.configure(connection).get_current_heads())
    unknown, newer = _unknown(rows, revisions)
    # The dependencies of a head are reached: older code has recorded no row of it.
    reached = _ids(revisions.get_all_current(tuple(rows - unknown)))
    pending = [head for head in revisions.get_heads() if head not in reached | newer]
    if unknown and unknown == rows:
        pending = []  # newer code has migrated all of it
    return SchemaState(pending, sorted(unknown), set(map(branch_of, reached | unknown)))


class BranchRows(HeadMaintainer):
    """Keeps a row for each branch in the database: its last revision that has been applied.

    Alembic keeps no row of a head that another branch depends on. Once the feature of that branch
    has been removed, no row would tell that the head is migrated. And if a revision depends on
    several heads, Alembic fails at one that has no row.
    """

    def update_to_step(self, step: RevisionStep | StampStep) -> None:
        assert isinstance(step, RevisionStep)
        revision = step.revision
        gone, new = set(to_tuple(revision.down_revision, default=())), {revision.revision}
        if step.is_downgrade:
            gone, new = new, gone
        for version in gone & self.heads:
            self._delete_version(version)
        for version in new - self.heads:
            self._insert_version(version)


def known_heads(migration: MigrationContext) -> tuple[str, ...]:
    """Returns the heads of the database that this code has, one for each branch, and adds the rows
    that Alembic has left out (`BranchRows`).

    Where the database has newer revisions of a branch, its head in the code is among them.
    """
    assert migration.script is not None
    assert migration.connection is not None
    rows = set(migration.get_current_heads())
    if not rows:
        return ()
    unknown, newer = _unknown(rows, migration.script)
    for revision in sorted(unknown):
        log.info("Leaving alone: %s", describe_unknown(revision, migration.script))
    rows -= unknown
    reached = migration.script.get_all_current((*rows, *newer))
    heads = {script.revision for script in reached if not script.nextrev & _ids(reached)}
    if superseded := rows - heads:
        migration.connection.execute(delete(VERSIONS).where(VERSION.in_(superseded)))
    if missing := heads - rows:
        migration.connection.execute(insert(VERSIONS), [{"version_num": head} for head in missing])
    return tuple(sorted(heads))


def without_implied(heads: Iterable[str], revisions: ScriptDirectory) -> tuple[str, ...]:
    """Returns the heads that no other depends on: Alembic itself would record these, and can plan
    a run with them."""
    heads = set(heads)
    return tuple(
        head for head in heads if head not in _ids(revisions.get_all_current(tuple(heads - {head})))
    )


def describe_unknown(revision: str, revisions: ScriptDirectory) -> str:
    """Returns a line on a revision of the database that the code does not have."""
    branch = branch_of(revision)
    if branch in map(branch_of, revisions.get_heads()):
        return f"{revision} is newer than this code"
    return (
        f"{revision} is of {branch}, which this code does not have; to drop its tables, run"
        f" `python -m app drop-feature {branch}` of the last release that has it"
    )


def _unknown(rows: set[str], revisions: ScriptDirectory) -> tuple[set[str], set[str]]:
    """Returns the rows that the code has no revision of, and the heads of their branches in the
    code."""
    unknown = rows - _ids(revisions.walk_revisions())
    branches = set(map(branch_of, unknown))
    return unknown, {head for head in revisions.get_heads() if branch_of(head) in branches}


def _ids(scripts: Iterable[Script]) -> set[str]:
    return {script.revision for script in scripts}
