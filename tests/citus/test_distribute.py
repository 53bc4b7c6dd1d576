"""`python -m app distribute`: which tables go where, and which it refuses."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from app.migrations import upgrade
from tests.kit.citus import Cluster
from tests.operations.test_doctor import doctor
from tests.repository_copies import ROOT, run_app

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]

SELECT_PLACEMENTS = """
SELECT table_name::text, citus_table_type FROM citus_tables ORDER BY 1
"""
DISTRIBUTED = {
    "idempotency_keys",
    "items",
    "outbox_changes",
    "outbox_failures",
    "search_documents",
    "search_embeddings",
    "search_owners",
    "search_pending",
    "search_queue",
    "search_terms",
    "search_words",
    "staged_items",
}
NEW_TABLE = """
CREATE TABLE orders (owner_id uuid, id uuid, title text, PRIMARY KEY (owner_id, id))
"""
BROKEN = {
    "orders: owner_id is not first in its primary key": """
        CREATE TABLE orders (id uuid PRIMARY KEY, owner_id uuid)""",
    "orders: owner_id is not first in orders_title_key": """
        CREATE TABLE orders (owner_id uuid, id uuid, title text UNIQUE, PRIMARY KEY (owner_id, id))
    """,
    "items: a distributed table has no triggers, as unchanged": """
        CREATE TRIGGER unchanged BEFORE UPDATE ON items
        FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()""",
    "users: a reference table has no triggers, as end_sessions": """
        ALTER TABLE items ADD FOREIGN KEY (owner_id) REFERENCES users (id)""",
    "notes: notes_owner_item_fkey refers to items, which is distributed": """
        CREATE TABLE notes (id uuid PRIMARY KEY, owner uuid, item uuid,
            CONSTRAINT notes_owner_item_fkey FOREIGN KEY (owner, item) REFERENCES items)""",
}


async def fetch(url: str, statement: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


def distribute(folder: Path, url: str) -> tuple[str, str, int]:
    done = run_app(folder, "distribute", database=url, PYTHONPATH=str(ROOT))
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout, done.stderr, done.returncode


async def test_the_keys_tell_which_table_goes_where(migrated: str, tmp_path: Path) -> None:
    owner = "gen_random_uuid()"
    await fetch(
        migrated,
        f"INSERT INTO items (owner_id, id, title, price)"
        f" SELECT {owner}, {owner}, 'Mug ' || n, 1 FROM generate_series(1, 500) AS n",
    )
    said, refused, status = distribute(tmp_path, migrated)
    assert status == 0, refused
    assert "writes wait, and reads do not: " in said
    assert "removed from the coordinator, as it is distributed: the rows of items" in said
    placements = dict(map(tuple, await fetch(migrated, SELECT_PLACEMENTS)))
    assert {name for name, kind in placements.items() if kind == "distributed"} == DISTRIBUTED
    assert {name for name, kind in placements.items() if kind == "reference"} == {"search_models"}
    [counted] = await fetch(migrated, "SELECT count(*), pg_relation_size('items') FROM items")
    assert tuple(counted) == (500, 0)

    said, _, status = distribute(tmp_path, migrated)
    assert status == 0
    assert "distributed already: " in said
    assert "writes wait" not in said


async def test_a_table_that_a_migration_adds_is_distributed_by_the_next_run(
    distributed: str, tmp_path: Path
) -> None:
    await fetch(distributed, NEW_TABLE)
    said, status = doctor(tmp_path, distributed)
    assert status == 1
    assert "wrong Citus: not distributed: orders; run `python -m app distribute`" in said
    said, _, status = distribute(tmp_path, distributed)
    assert status == 0
    assert "distributed by owner_id: orders\n" in said
    said, status = doctor(tmp_path, distributed)
    assert status == 0, said
    assert "ok    Citus: 2 workers, 13 tables distributed, each in shards: 2, 2\n" in said


async def test_the_doctor_names_a_worker_without_shards_and_what_is_lost(
    distributed: str, tmp_path: Path
) -> None:
    await fetch(
        distributed,
        "SELECT citus_drain_node('worker2', 5432, shard_transfer_mode => 'block_writes')",
    )
    await fetch(
        distributed, "SELECT citus_set_node_property('worker2', 5432, 'shouldhaveshards', true)"
    )
    said, status = doctor(tmp_path, distributed)
    assert status == 1
    assert "wrong Citus: worker2:5432 has no shards: SELECT citus_rebalance_start(…)" in said
    await fetch(
        distributed,
        "DELETE FROM pg_dist_placement WHERE shardid = (SELECT min(shardid) FROM pg_dist_shard"
        " WHERE logicalrelid = 'items'::regclass)",
    )
    said, status = doctor(tmp_path, distributed)
    assert status == 1
    assert "wrong Citus: shards that are on no worker: items\n" in said


async def test_migrations_run_on_distributed_tables(distributed: str) -> None:
    await asyncio.to_thread(upgrade, distributed)
    await fetch(distributed, "ALTER TABLE items ADD colour text")
    await fetch(distributed, "CREATE INDEX CONCURRENTLY ix_colour ON items (owner_id, colour)")
    assert await fetch(distributed, "SELECT colour FROM items") == []


@pytest.mark.parametrize("reason", BROKEN)
async def test_what_breaks_a_rule_is_named_before_anything_is_changed(
    reason: str, migrated: str, tmp_path: Path
) -> None:
    await fetch(migrated, BROKEN[reason])
    _, said, status = distribute(tmp_path, migrated)
    assert status == 1
    assert f"error: {reason}\n" in said
    assert await fetch(migrated, SELECT_PLACEMENTS) == []


async def test_a_database_without_citus_or_without_workers_is_told_so(
    cluster: Cluster, migrated: str, database_url: str, tmp_path: Path
) -> None:
    _, said, status = distribute(tmp_path, database_url)
    assert (status, said.count("\n")) == (1, 1)
    assert "the database has no extension citus; see app/deploy/citus/README.md" in said
    await fetch(
        migrated, "SELECT citus_remove_node(nodename, nodeport) FROM pg_dist_node WHERE groupid > 0"
    )
    _, said, status = distribute(tmp_path, migrated)
    assert status == 1
    assert "Citus has no workers" in said
