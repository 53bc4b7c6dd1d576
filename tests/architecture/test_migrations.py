"""Each feature's migrations match its models, alone and with all others, up and down."""

import asyncio
import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlmodel import SQLModel

from app import migrations
from app.definitions import file_of
from app.discovery import branches_of, find_features
from app.migrations import (
    SchemaState,
    alembic_config,
    branch_of,
    downgrade,
    load_revisions,
    schema_state,
    upgrade,
)
from app.scaffold.comparing import Changes, compare_models
from app.scaffold.definitions import list_definitions
from shared.db.connecting import connector
from shared.db.database import new_engine
from shared.db.tables import table_owners
from tests.architecture.ownership import creators
from tests.kit import Server

BRANCHES = branches_of(find_features())
OBJECTS = """
SELECT relkind::text || ' ' || relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'alembic_version%'
  AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e')
UNION ALL
SELECT 'function ' || proname FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
  AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
UNION ALL
SELECT 'text search configuration ' || cfgname FROM pg_ts_config
WHERE cfgnamespace = 'public'::regnamespace
ORDER BY 1
"""


@pytest.fixture
def url(empty_database: str) -> str:
    return empty_database


def query(url: str, statement: str) -> list[Any]:
    async def run() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return [row[0] for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    return asyncio.run(run())


def needed_by(branch: str) -> list[str]:
    """Returns the branch and all its dependencies, dependencies first."""
    if branch == "shared":
        return ["shared"]
    return branches_of(find_features(branch))


def check_models(url: str, branch: str) -> None:
    """Fails if the tables of the branch differ from its models, or if a table has no model."""
    owner = table_owners()

    def include(_object: Any, name: str | None, kind: str, *_: Any) -> bool:
        return kind != "table" or owner.get(str(name), branch) == branch

    config = alembic_config(url, needed_by(branch))
    config.attributes["autogenerate"] = {"include_object": include}
    command.check(config)
    assert asyncio.run(_compare(url, branch)) == Changes()


async def _compare(url: str, branch: str) -> Changes:
    """Returns what Alembic does not compare: enum types and check constraints."""
    engine = new_engine(connector(url, None))
    async with engine.connect() as connection:
        own = [table for table, owner in table_owners().items() if owner == branch]
        found = await connection.run_sync(compare_models, own)
    await engine.dispose()
    return found


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_stands_alone_and_its_models_equal_its_migrations(url: str, branch: str) -> None:
    """Uses only the revisions of the branch and its dependencies."""
    command.upgrade(alembic_config(url, needed_by(branch)), "heads")
    check_models(url, branch)
    tables = set(query(url, "SELECT relname FROM pg_class WHERE relkind = 'r'"))
    assert {table for table, owner in table_owners().items() if owner == branch} <= tables


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_brings_what_its_head_depends_on(url: str, branch: str) -> None:
    command.upgrade(alembic_config(url), f"{branch}@head")


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_branches_that_are_named_are_migrated_and_no_others(url: str, branch: str) -> None:
    upgrade(url, needed_by(branch))
    created = set(query(url, OBJECTS))
    for table, creator in creators().items():
        if creator not in needed_by(branch):
            assert f"r {table}" not in created, table
    for table in table_owners():  # a later revision may have dropped others
        assert (f"r {table}" in created) == (creators()[table] in needed_by(branch)), table


def test_everything_goes_up_and_down_and_up_again(url: str) -> None:
    upgrade(url)
    up = query(url, OBJECTS)
    assert {f"r {table.name}" for table in SQLModel.metadata.sorted_tables} <= set(up)
    command.downgrade(alembic_config(url), "base")
    assert query(url, OBJECTS) == []
    upgrade(url)
    assert query(url, OBJECTS) == up


def test_migrating_again_changes_nothing(url: str) -> None:
    upgrade(url)
    revisions = query(url, "SELECT version_num FROM alembic_version ORDER BY 1")
    upgrade(url)
    assert query(url, "SELECT version_num FROM alembic_version ORDER BY 1") == revisions


@pytest.mark.verify
@pytest.mark.parametrize("branch", BRANCHES)
def test_what_a_branch_makes_is_listed(server: Server, branch: str) -> None:
    file = file_of(branch)
    listed = file.read_text() if file.exists() else ""
    assert listed == list_definitions(server.admin_url, branch), "run `make definitions`"


def test_each_function_can_be_created_by_a_role_that_is_no_superuser(database_url: str) -> None:
    """A setting of an extension, in a SET clause, is a superuser's in a session that has not loaded
    the extension: a restore by the owner would leave such a function out."""
    settings = query(
        database_url,
        "SELECT proname || ': ' || setting FROM pg_proc, unnest(proconfig) AS setting"
        " WHERE pronamespace = 'public'::regnamespace AND split_part(setting, '=', 1) LIKE '%.%'",
    )
    assert settings == []


def test_ten_may_migrate_at_once(url: str) -> None:
    with multiprocessing.get_context("forkserver").Pool(
        10
    ) as pool:  # not fork: this process has threads
        pool.map_async(upgrade, [url] * 10, chunksize=1).get(100)
    assert state(url) == SchemaState([], [], set(BRANCHES))


def test_every_revision_gives_up_soon_where_a_lock_is_held() -> None:
    for script in load_revisions().walk_revisions():
        text = Path(script.path).read_text()
        for function in ("upgrade", "downgrade"):
            body = text.split(f"def {function}()")[1].split("\ndef ")[0]
            assert "lock_timeout" in body, f"{script.path}: {function} sets no lock_timeout"


@pytest.mark.parametrize("branch", BRANCHES)
def test_what_is_missing_is_pending(url: str, branch: str) -> None:
    """Everything is migrated, except one branch and those that depend on it."""
    without = [other for other in BRANCHES if branch not in needed_by(other)]
    if without:
        command.upgrade(alembic_config(url, without), "heads")
    heads = {head for head in load_revisions().get_heads() if branch in needed_by(branch_of(head))}
    assert set(state(url).pending) == heads


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_that_is_ahead_of_this_code_is_not_pending(
    url: str, branch: str, code: Path
) -> None:
    """As in a rollout: the new code has migrated the database, and the old code still serves, or
    migrates again."""
    old = load_revisions()
    (head,) = (head for head in old.get_heads() if branch_of(head) == branch)
    newer = write_revision(code, f"{branch}_9999", after=head)
    upgrade(url)
    assert f"{branch}_9999" in recorded(url)
    assert state(url, old) == SchemaState([], [f"{branch}_9999"], set(BRANCHES))

    newer.unlink()
    write_revision(code, "extras_0001", depends_on=branch)
    assert state(url).pending == ["extras_0001"]
    upgrade(url)
    assert state(url) == SchemaState([], [f"{branch}_9999"], {*BRANCHES, "extras"})


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_revisions_of_a_removed_feature_stay_and_all_others_are_migrated(
    url: str, branch: str, code: Path
) -> None:
    write_revision(code, "extras_0001", depends_on=branch)
    upgrade(url)
    shutil.rmtree(code / "extras")
    assert state(url) == SchemaState([], ["extras_0001"], {*BRANCHES, "extras"})

    (head,) = (head for head in load_revisions().get_heads() if branch_of(head) == branch)
    write_revision(code, f"{branch}_9999", after=head)
    write_revision(code, "others_0001", depends_on=branch)
    assert set(state(url).pending) == {f"{branch}_9999", "others_0001"}
    upgrade(url)
    assert state(url).pending == []
    assert {"extras_0001", "others_0001", f"{branch}_9999"} <= recorded(url)

    write_revision(code, "extras_0001", depends_on=branch)
    downgrade(url, "extras")
    assert state(url) == SchemaState(["extras_0001"], [], {*BRANCHES, "others"})


@pytest.mark.parametrize("needed", [BRANCHES, BRANCHES[:2], BRANCHES[1:]], ids=str)
def test_features_that_depend_on_the_same_heads_are_migrated_one_after_the_other(
    url: str, needed: list[str], code: Path
) -> None:
    heads = sorted(heads_of(needed))
    for name in ("apples", "pears"):
        write_revision(code, f"{name}_0001", depends_on=heads)
        upgrade(url)
        assert state(url) == SchemaState([], [], state(url).branches)
    write_revision(code, "pears_0002", after="pears_0001", depends_on=["apples_0001", *heads])
    upgrade(url)
    assert recorded(url) == {"apples_0001", "pears_0002", *heads_of(BRANCHES)}
    downgrade(url, "pears")
    downgrade(url, "apples")
    assert recorded(url) == heads_of(BRANCHES)


def test_a_feature_depends_on_heads_of_which_another_implies_one(url: str, code: Path) -> None:
    for name in ("apples", "pears"):
        write_revision(code, f"{name}_0001", depends_on=["users_0001"])
    (head,) = heads_of(["users"])
    write_revision(code, "plums_0001", depends_on=[head])
    upgrade(url)
    write_revision(code, "trees_0001", depends_on=[head, "apples_0001", "pears_0001"])
    upgrade(url)
    assert state(url).pending == []
    downgrade(url, "trees")
    downgrade(url, "plums")
    assert recorded(url) == {"apples_0001", "pears_0001", *heads_of(BRANCHES)}


def heads_of(branches: Sequence[str]) -> set[str]:
    """Returns the heads of these branches."""
    return {head for head in load_revisions().get_heads() if branch_of(head) in branches}


def test_a_branch_is_migrated_where_only_others_are(url: str, code: Path) -> None:
    upgrade(url)
    write_revision(code, "extras_0001")
    upgrade(url, ["extras"])
    assert "extras_0001" in recorded(url)
    assert state(url) == SchemaState([], [], {*BRANCHES, "extras"})


def test_the_database_records_the_head_of_each_branch(url: str, code: Path) -> None:
    """Alembic alone records none that another depends on, and so did older code."""
    heads = load_revisions().get_heads()
    write_revision(code, "extras_0001", depends_on=heads[0])
    upgrade(url)
    assert recorded(url) == {*heads, "extras_0001"}
    query(url, f"DELETE FROM alembic_version WHERE version_num = '{heads[0]}'")
    upgrade(url)
    assert recorded(url) == {*heads, "extras_0001"}


def test_the_id_of_a_revision_begins_with_its_branch() -> None:
    for script in load_revisions().walk_revisions():
        assert branch_of(script.revision) == Path(script.path).parent.name


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of migrations, in place of it, that the test can change."""
    shutil.copytree(migrations.ROOT, tmp_path / "migrations")
    monkeypatch.setattr(migrations, "ROOT", tmp_path / "migrations")
    return tmp_path / "migrations"


def write_revision(
    code: Path, revision: str, after: str = "", depends_on: str | Sequence[str] = ()
) -> Path:
    """Writes a revision that changes nothing, the first of a branch if it is after none."""
    branch = branch_of(revision)
    needed = (depends_on,) if isinstance(depends_on, str) else tuple(depends_on)
    (code / branch).mkdir(exist_ok=True)
    file = code / branch / f"{revision}.py"
    file.write_text(
        f"revision, down_revision = {revision!r}, {after or None!r}\n"
        f"branch_labels = {None if after else (branch,)!r}\n"
        f"depends_on = {needed or None!r}\n"
        "def upgrade(): pass\n"
        "def downgrade(): pass\n"
    )
    return file


def recorded(url: str) -> set[str]:
    return set(query(url, "SELECT version_num FROM alembic_version"))


def state(url: str, revisions: ScriptDirectory | None = None) -> SchemaState:
    """Returns what `/readyz` finds of the database at this URL."""
    return asyncio.run(_state(url, revisions or load_revisions()))


async def _state(url: str, revisions: ScriptDirectory) -> SchemaState:
    engine = new_engine(connector(url, None))
    async with engine.connect() as connection:
        found = await connection.run_sync(schema_state, revisions)
    await engine.dispose()
    return found
