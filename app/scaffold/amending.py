"""Rewrites the last revision of a branch, unless others have it already."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.util import to_tuple

from app.migrations import ROOT, alembic_config, has_revisions, head_of, load_revisions
from app.scaffold.affected import run_git
from app.scaffold.revising import NothingToRevise, write_revision
from shared.db.connecting import connector
from shared.db.database import new_engine
from shared.feature import FeatureError


def amend_revision(url: str, feature: str, message: str | None = None) -> Script:
    """Replaces the last revision of the feature by one that `write_revision` writes; raises as that
    does. Keeps the message, unless another is given.

    Downgrades the development database at `url` first, if it has the revision. Changes that were
    made to the revision by hand are lost.

    Raises:
        FeatureError: others may have the revision, or another revision depends on it.
    """
    if not has_revisions(feature):
        raise FeatureError(f"the feature {feature!r} has no revision that could be amended")
    revisions = load_revisions()
    script = revisions.get_revision(head_of(revisions, feature))
    path = Path(script.path)
    _refuse_known(revisions, script)
    if script.revision in asyncio.run(_applied(url, revisions)):
        command.downgrade(alembic_config(url), str(script.down_revision or f"{feature}@base"))
    text = path.read_text()
    path.unlink()
    try:
        return write_revision(url, feature, message or script.doc)
    except NothingToRevise:
        raise NothingToRevise(
            f"without {path.name} the tables of {feature!r} are as its migrations make them:"
            " it has been deleted"
        ) from None
    except BaseException:
        path.write_text(text)
        raise


def _refuse_known(revisions: ScriptDirectory, script: Script) -> None:
    """Raises a FeatureError where a remote or the main branch has the file, or another revision
    depends on it."""
    path = Path(script.path).relative_to(ROOT.parent)
    branches = ("refs/remotes", "refs/heads/main", "refs/heads/master")
    refs = run_git("for-each-ref", "--format=%(refname)", *branches)
    if refs and (commits := run_git("log", "-1", "--format=%h", *refs, "--", str(path))):
        raise FeatureError(
            f"others have {path}: commit {commits[0]} is in the main branch or at a remote."
            " Write another revision: make migration without amend"
        )
    names = {script.revision} if script.down_revision else {script.revision, *script.branch_labels}
    for other in revisions.walk_revisions():
        if names.intersection(to_tuple(other.dependencies, default=())):
            raise FeatureError(f"{Path(other.path).name} depends on {path}: amend that first")


async def _applied(url: str, revisions: ScriptDirectory) -> set[str]:
    """Returns the revisions that the database has."""
    engine = new_engine(connector(url, None))
    async with engine.connect() as connection:
        heads = await connection.run_sync(
            lambda sync: MigrationContext.configure(sync).get_current_heads()
        )
    await engine.dispose()
    known = {script.revision for script in revisions.walk_revisions()} & set(heads)
    return {script.revision for script in revisions.get_all_current(tuple(known))}
