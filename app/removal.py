"""Removes a feature: its tables from a database, and its folders from the code."""

import asyncio
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from app.discovery import find_features
from app.main import create_app
from app.migrations import (
    SchemaState,
    branch_of,
    dependents_of,
    downgrade,
    load_revisions,
    schema_state,
)
from app.scaffold.documents import document_parts, write_parts
from shared.db.connecting import connector
from shared.db.database import new_engine
from shared.feature import Feature, FeatureError
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
IN_PRODUCTION = """
In production, first deploy the code without it: the database keeps the tables, and each process
says so at its start. When no process of an older release is left, drop them with the code of the
last release that has it ({commit}):
  python -m app drop-feature {name}"""


def drop_tables(url: str, name: str) -> bool:
    """Takes back all revisions of a feature, and returns whether the database had any.

    Raises:
        FeatureError: the feature does not exist, or the database has a feature that depends on it,
            or revisions of it that this code does not have. Nothing has been dropped.
    """
    schema = asyncio.run(_read_schema(url))
    _refuse_if_needed(name, [other for other in _dependents(name) if other in schema.branches])
    if newer := [revision for revision in schema.unknown if branch_of(revision) == name]:
        raise FeatureError(
            f"the database has {', '.join(newer)}, which this code does not have: use the last "
            f"release that has {name!r}"
        )
    if name in schema.branches:
        downgrade(url, name)
    return name in schema.branches


def remove(settings: Settings, name: str) -> list[str]:
    """Drops a feature's tables, deletes its folders and corrects the stored API documents.

    Work in these folders that is not committed goes to `git stash`.

    Returns:
        The steps that it has done, a line for each, and those that are left.

    Raises:
        FeatureError: the feature does not exist, or another depends on it, or its tables cannot be
            dropped. No file has been deleted.
    """
    features = find_features()
    _refuse_if_needed(name, _dependents(name))
    assert settings.database_url
    dropped = drop_tables(settings.database_direct_url or settings.database_url, name)
    done = [f"dropped the tables of {name}"] if dropped else []
    folders = [f for f in (f"features/{name}", f"migrations/{name}") if (ROOT / f).exists()]
    done += _stash(folders)
    for folder in folders:
        if (ROOT / folder).exists():  # the stash takes a folder that was never committed
            shutil.rmtree(ROOT / folder)
        done.append(f"deleted {folder}")
    return done + _correct_documents(settings, features, name) + _left_for_production(name)


def _dependents(name: str) -> list[str]:
    """Returns the features that depend on this one, by declaration or by a migration."""
    find_features(name)  # raises if the feature does not exist
    declared = [feature.name for feature in find_features() if name in feature.depends_on]
    return sorted({*declared, *dependents_of(name, load_revisions())})


def _refuse_if_needed(name: str, dependents: Sequence[str]) -> None:
    if dependents:
        depend = "depends" if len(dependents) == 1 else "depend"
        raise FeatureError(f"{name!r} is needed: {', '.join(dependents)} {depend} on it")


async def _read_schema(url: str) -> SchemaState:
    engine = new_engine(connector(url, None))
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(schema_state, load_revisions())
    finally:
        await engine.dispose()


def _stash(folders: Sequence[str]) -> list[str]:
    """Moves uncommitted changes in these folders to `git stash`."""
    changed = _git("status", "--porcelain", "--untracked-files=all", "--", *folders)
    if changed is None:
        return ["no git repository: nothing brings the files back"]
    if not changed:
        return []
    message = f"what was not committed in {' and '.join(folders)}"
    if _git("stash", "push", "--include-untracked", f"--message={message}", "--", *folders) is None:
        raise FeatureError(f"commit {' and '.join(folders)} first: git cannot stash the changes")
    return ["moved what was not committed to `git stash`"]


def _left_for_production(name: str) -> list[str]:
    """Returns the steps in production, or none if the feature has never been committed."""
    commit = _git("rev-parse", "--short", "HEAD")
    if commit and _git("cat-file", "-e", f"HEAD:features/{name}") is None:
        return []
    last = f"commit {commit.strip()} has it" if commit else "this copy is in no git repository"
    return [IN_PRODUCTION.format(name=name, commit=last)]


def _git(*arguments: str) -> str | None:
    """Returns the output of a git command, or None if it fails."""
    try:
        done = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607  # git of the PATH
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout


def _correct_documents(settings: Settings, features: Sequence[Feature], name: str) -> list[str]:
    """Rewrites the stored API documents if the feature was part of another's."""
    without = create_app(settings, [feature for feature in features if feature.name != name])
    before, after = document_parts(create_app(settings, features)), document_parts(without)
    changed = [path for path in after if after[path] != before[path]]
    if changed:
        write_parts(without)
    return [f"changed {path}" for path in changed]
