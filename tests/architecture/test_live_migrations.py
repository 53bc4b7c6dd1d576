"""Revisions change tables in use: many processes migrate at once, while others read and write."""

import asyncio
import logging
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest
import structlog
from structlog.testing import capture_logs

from app import migrations
from app.migrations import MigrationError
from tests.architecture.migrators import processes, upgrade_from
from tests.kit import eventually, within

CREATE_NOTES = """
op.execute("CREATE TABLE notes (owner int, id int, body text, PRIMARY KEY (owner, id))")
op.execute("INSERT INTO notes SELECT n % 7, n, 'old' FROM generate_series(1, 5000) AS n")
"""
CREATE_INDEX = "create_index_concurrently('ix_notes_body', 'notes', ['body'])"
INDEX_IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_notes_body')"
MIGRATORS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'tessera migrate' AND datname = current_database()
"""
BUILDS = MIGRATORS + "AND wait_event = 'virtualxid' AND query LIKE 'CREATE INDEX%'"
LOCK_TIMEOUT_SECONDS = 5.0

Connection: TypeAlias = "asyncpg.Connection[Any]"


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Sets the level `info`: an application of another test may have set another."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    yield
    structlog.configure(wrapper_class=before)


@pytest.fixture
def url(empty_database: str) -> str:
    return empty_database


@pytest.fixture
async def connection(url: str) -> AsyncIterator[Connection]:
    connection: Connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
async def root(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of migrations with one branch, whose table is in the database, with rows."""
    root = tmp_path / "migrations"
    (root / "notes").mkdir(parents=True)
    (root / "env.py").write_text((migrations.ROOT / "env.py").read_text())
    monkeypatch.setattr(migrations, "ROOT", root)
    add_revision(root, CREATE_NOTES)
    await asyncio.to_thread(migrations.upgrade, url)
    return root


def add_revision(root: Path, upgrade: str) -> None:
    number = len(list(root.glob("notes/*.py")))
    previous = f"notes_{number - 1}" if number else None
    (root / f"notes/{number:04}_revision.py").write_text(
        "from alembic import op\nfrom migrations.operations import *\n"
        f"revision, down_revision, depends_on = 'notes_{number}', {previous!r}, None\n"
        f"branch_labels = {None if number else ('notes',)}\n"
        "def upgrade():\n"
        "    op.execute(\"SET LOCAL lock_timeout = '5s'\")\n"
        f"{textwrap.indent(upgrade.strip(), '    ')}\n"
    )


@asynccontextmanager
async def old_transaction(url: str) -> AsyncIterator[None]:
    """Holds a snapshot during the block, as a backup or a report does."""
    connection: Connection = await asyncpg.connect(
        url, server_settings={"application_name": "nightly report"}
    )
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute("SELECT count(*) FROM notes")
            yield
    finally:
        await connection.close()


@pytest.mark.verify
async def test_ten_processes_wait_for_a_transaction_that_is_older_than_an_index(
    url: str, root: Path, connection: Connection
) -> None:
    add_revision(root, CREATE_INDEX)

    async def all_wait() -> bool:
        waits_long = f"{BUILDS} AND now() - query_start > '{LOCK_TIMEOUT_SECONDS + 1} s'"
        counts = [await connection.fetchval(sql) for sql in (waits_long, MIGRATORS)]
        return counts == [1, 10 + 1]  # and the watcher of the one that builds

    loop = asyncio.get_running_loop()
    with processes(10) as executor:
        async with old_transaction(url):
            runs = [loop.run_in_executor(executor, upgrade_from, root, url) for _ in range(10)]
            await eventually(all_wait, "ten migrators that wait", 100)
        async with within(60, "the end of the migrations"):
            await asyncio.gather(*runs)
    assert await connection.fetchval(INDEX_IS_VALID) is True


async def test_the_log_names_the_transaction_that_a_migration_waits_for(
    url: str, root: Path
) -> None:
    add_revision(root, CREATE_INDEX)
    with capture_logs() as logs:
        async with old_transaction(url):
            run = asyncio.create_task(asyncio.to_thread(migrations.upgrade, url))
            await eventually(lambda: logs, "the warning")
        await run
    (logged,) = logs
    assert logged["event"] == "migration_waits"
    assert logged["application_name"] == "nightly report"
    assert logged["pid"] > 0
    assert logged["state"] == "idle in transaction"
    assert logged["seconds"] >= 0


async def test_an_index_waits_only_as_long_as_migrate_is_told(
    url: str, root: Path, connection: Connection
) -> None:
    add_revision(root, CREATE_INDEX)
    async with old_transaction(url):
        with pytest.raises(MigrationError, match="lock timeout"):
            await asyncio.to_thread(migrations.upgrade, url, wait_seconds=0.1)
    assert await connection.fetchval(INDEX_IS_VALID) is False
    await asyncio.to_thread(migrations.upgrade, url)  # builds it again
    assert await connection.fetchval(INDEX_IS_VALID) is True


async def test_a_complete_index_is_kept_when_its_revision_runs_again(
    url: str, root: Path, connection: Connection
) -> None:
    """Its process ended after the index was built, before the revision was recorded."""
    await connection.execute("CREATE INDEX ix_notes_body ON notes (body)")
    oid = await connection.fetchval("SELECT 'ix_notes_body'::regclass::oid")
    add_revision(root, CREATE_INDEX)
    await asyncio.to_thread(migrations.upgrade, url)
    assert await connection.fetchval("SELECT 'ix_notes_body'::regclass::oid") == oid


async def test_an_index_is_dropped_without_a_lock_on_its_table(
    url: str, root: Path, connection: Connection
) -> None:
    add_revision(root, CREATE_INDEX)
    add_revision(root, "drop_index_concurrently('ix_notes_body', 'notes')")
    await asyncio.to_thread(migrations.upgrade, url)
    assert await connection.fetchval("SELECT to_regclass('ix_notes_body')") is None


async def test_what_follows_an_index_in_its_revision_has_the_lock_timeout_of_revisions(
    url: str, root: Path, connection: Connection
) -> None:
    add_revision(
        root,
        f"{CREATE_INDEX}\n"
        "timeout = op.get_bind().exec_driver_sql('SHOW lock_timeout').scalar()\n"
        "op.execute(f\"COMMENT ON TABLE notes IS '{timeout}'\")",
    )
    await asyncio.to_thread(migrations.upgrade, url)
    timeout = await connection.fetchval("SELECT obj_description('notes'::regclass)")
    assert timeout == f"{LOCK_TIMEOUT_SECONDS:.0f}s"


BACKFILL = """backfill("notes", "body = 'new'", where="body = 'old'", batch=700)"""
OLD_NOTES = "SELECT count(*) FROM notes WHERE body = 'old'"


@pytest.mark.parametrize("batch", [1_000, 5_000, 7_000, 999])
async def test_a_backfill_updates_each_row(
    url: str, root: Path, connection: Connection, batch: int
) -> None:
    await connection.execute("UPDATE notes SET body = 'none' WHERE id % 10 = 0")
    add_revision(root, BACKFILL.replace("700", str(batch)))
    await asyncio.to_thread(migrations.upgrade, url)
    counts = dict(await connection.fetch("SELECT body, count(*) FROM notes GROUP BY body"))
    assert counts == {"new": 4_500, "none": 500}


async def test_a_backfill_commits_each_batch_and_waits_for_a_locked_row(
    url: str, root: Path, connection: Connection
) -> None:
    """The rows of a batch that waits are not locked meanwhile."""
    add_revision(root, BACKFILL)

    async def has_begun() -> bool:
        return bool(await connection.fetchval(OLD_NOTES) < 5_000)

    holder: Connection = await asyncpg.connect(url)
    async with holder.transaction():
        await holder.execute("UPDATE notes SET body = 'mine' WHERE (owner, id) = (3, 2152)")
        run = asyncio.create_task(asyncio.to_thread(migrations.upgrade, url))
        await eventually(has_begun, "the first batches")
        tried_again = MIGRATORS + "AND query LIKE 'UPDATE notes%' AND state = 'idle'"
        await eventually(lambda: connection.fetchval(tried_again), "a batch that gives up")
        assert not run.done()
        await holder.execute("UPDATE notes SET body = 'mine' WHERE (owner, id) = (3, 2145)")
    await run
    await holder.close()
    counts = dict(await connection.fetch("SELECT body, count(*) FROM notes GROUP BY body"))
    assert counts == {"new": 4_998, "mine": 2}


async def test_a_backfill_that_has_failed_continues(
    url: str, root: Path, connection: Connection
) -> None:
    add_revision(root, BACKFILL)
    async with connection.transaction():
        await connection.execute("SELECT FROM notes WHERE (owner, id) = (5, 4660) FOR UPDATE")
        with pytest.raises(MigrationError, match="lock timeout"):
            await asyncio.to_thread(migrations.upgrade, url, wait_seconds=0.1)
        remaining = await connection.fetchval(OLD_NOTES)
    assert 0 < remaining < 5_000
    await asyncio.to_thread(migrations.upgrade, url)
    assert await connection.fetchval(OLD_NOTES) == 0


async def test_a_backfill_of_a_table_without_a_primary_key_is_refused(
    url: str, root: Path, connection: Connection
) -> None:
    await connection.execute("CREATE TABLE loose (body text)")
    add_revision(root, BACKFILL.replace("notes", "loose"))
    with pytest.raises(
        MigrationError, match=r"py:7: ValueError: .* primary key, and 'loose' has none"
    ):
        await asyncio.to_thread(migrations.upgrade, url)
