"""`doctor` names each difference from what the migrations make, and the statement that mends it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from app.discovery import find_features
from app.embedded import ensure_database, wheel_binaries
from app.migrations import load_revisions, schema_state, upgrade
from app.schema_drift import Difference, find_differences
from shared.db.connecting import connector
from shared.db.database import new_engine
from tests.operations.test_doctor import doctor
from tests.repository_copies import ROOT, run_app
from tests.resilience.pairs import running_primary, running_standby

FAULTS = {
    "a function": ("DROP FUNCTION end_sessions CASCADE", "function end_sessions()"),
    "the body of a function": (
        "CREATE OR REPLACE FUNCTION end_sessions() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END'",
        "function end_sessions()",
    ),
    "a setting of a function": (
        "ALTER FUNCTION end_sessions() SECURITY DEFINER",
        "function end_sessions()",
    ),
    "a trigger": ("DROP TRIGGER revoke ON sessions", "trigger revoke ON sessions"),
    "a trigger of another kind": (
        "CREATE OR REPLACE TRIGGER end_sessions AFTER UPDATE OF name ON users"
        " FOR EACH ROW EXECUTE FUNCTION end_sessions()",
        "trigger end_sessions ON users",
    ),
    "a disabled trigger": ("ALTER TABLE sessions DISABLE TRIGGER revoke", "table sessions"),
    "disabled foreign keys": (
        "ALTER TABLE outbox_failures DISABLE TRIGGER ALL",
        "table outbox_failures",
    ),
    "an index": ("DROP INDEX ix_items_owner_id_price", "table items"),
    "an index of other columns": (
        "DROP INDEX ix_items_owner_id_price;"
        " CREATE INDEX ix_items_owner_id_price ON items (price, id)",
        "table items",
    ),
    "a partial index": ("DROP INDEX uq_users_email", "table users"),
    "a unique constraint": (
        "ALTER TABLE items DROP CONSTRAINT uq_items_owner_id_external_id",
        "table items",
    ),
    "a check": ("ALTER TABLE items DROP CONSTRAINT ck_items_price_positive", "table items"),
    "a foreign key": (
        "ALTER TABLE outbox_failures DROP CONSTRAINT fk_outbox_failures_owner_id_change_id",
        "table outbox_failures",
    ),
    "a primary key": (
        "ALTER TABLE periodic_tasks DROP CONSTRAINT pk_periodic_tasks",
        "table periodic_tasks",
    ),
    "the type of a column": ("ALTER TABLE users ALTER name TYPE char(30)", "table users"),
    "NOT NULL": ("ALTER TABLE items ALTER title DROP NOT NULL", "table items"),
    "a default": ("ALTER TABLE items ALTER created_at DROP DEFAULT", "table items"),
}


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def differences(url: str) -> Sequence[Difference]:
    engine = new_engine(connector(url, None))
    try:
        async with engine.connect() as connection:
            schema = await connection.run_sync(schema_state, load_revisions())
            return await connection.run_sync(find_differences, find_features(), schema)
    finally:
        await engine.dispose()


async def mend(url: str, difference: Difference) -> None:
    """Does what the difference says, as it stands."""
    if difference.mend.startswith("psql"):
        psql = wheel_binaries() / "psql"
        command = difference.mend.replace(
            "psql", f"{psql} --no-psqlrc --quiet -v ON_ERROR_STOP=1", 1
        )
        done = await asyncio.create_subprocess_shell(command, cwd=ROOT, env={"OWNER_URL": url})
        assert await done.wait() == 0
    else:
        await execute(url, difference.mend.partition(", as a superuser")[0])


async def test_a_migrated_database_has_no_differences(database_url: str) -> None:
    assert await differences(database_url) == []


@pytest.mark.parametrize(("fault", "subject"), FAULTS.values(), ids=FAULTS)
async def test_a_fault_is_named_and_mended_by_what_is_said(
    database_url: str, fault: str, subject: str
) -> None:
    await execute(database_url, fault)
    found = await differences(database_url)
    assert subject in {each.subject for each in found}
    for difference in found:
        await mend(database_url, difference)
    assert await differences(database_url) == []


async def test_an_index_whose_build_failed_is_named_and_mended(database_url: str) -> None:
    await execute(
        database_url,
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'ix_items_owner_id_price'::regclass",
    )
    (invalid,) = await differences(database_url)
    assert invalid.advice == (
        "invalid: its build failed; REINDEX INDEX CONCURRENTLY ix_items_owner_id_price"
    )
    await mend(database_url, invalid)
    assert await differences(database_url) == []


@pytest.mark.parametrize(
    ("loss", "subject"),
    [
        ("DROP TABLE items CASCADE", "table items"),
        ("ALTER TABLE users DROP name", "column users.name"),
        ("ALTER TABLE sessions DROP user_id", "column sessions.user_id"),
    ],
)
async def test_what_had_values_is_restored(database_url: str, loss: str, subject: str) -> None:
    await execute(database_url, loss)
    advice = {each.subject: each.advice for each in await differences(database_url)}
    assert advice[subject] == "missing; restore it from a backup"


async def test_what_somebody_has_added_is_no_difference(database_url: str) -> None:
    for added in (
        "CREATE INDEX for_reports ON items (title)",
        "ALTER TABLE items ADD noted text",
        "ALTER TABLE items ADD CHECK (price < 1000000)",
        "CREATE TABLE reports ()",
        "CREATE FUNCTION report() RETURNS int LANGUAGE sql RETURN 1",
    ):
        await execute(database_url, added)
    assert await differences(database_url) == []


async def test_the_tables_of_newer_code_are_not_compared(database_url: str) -> None:
    await execute(database_url, "DROP INDEX ix_items_owner_id_price")
    await execute(
        database_url,
        "UPDATE alembic_version SET version_num = 'items_9999' WHERE version_num LIKE 'items%'",
    )
    assert await differences(database_url) == []


@pytest.mark.verify
async def test_the_doctor_and_the_migration_name_all_faults(
    database_url: str, tmp_path: Path
) -> None:
    await execute(database_url, "DROP FUNCTION end_sessions CASCADE")
    await execute(database_url, "DROP INDEX ix_items_owner_id_price")
    said, status = doctor(tmp_path, database_url)
    named = (
        "function end_sessions(): missing; psql",
        "trigger end_sessions ON users: missing; psql",
        "table items: not as the migrations make it; CREATE INDEX CONCURRENTLY ix_items_owner_id_p",
    )
    assert status == 1
    for each in named:
        assert f"wrong {each}" in said
    done = run_app(tmp_path, "migrate", database=database_url, PYTHONPATH=str(ROOT))
    assert done.returncode == 0
    assert done.stderr.count("schema_differs") == len(named)


@pytest.mark.verify
def test_a_replica_is_compared_too(tmp_path: Path) -> None:
    with running_primary() as primary:
        url = asyncio.run(ensure_database(primary, "tessera"))
        upgrade(url)
        asyncio.run(execute(url, "DROP INDEX ix_items_owner_id_price"))
        with running_standby(primary) as standby:
            replica = standby.url("tessera")
            said, status = doctor(tmp_path, url, APP_DATABASE_REPLICA_URL=replica)
    assert status == 1
    for of in ("", " of the replica"):
        assert f"wrong table items{of}: not as the migrations make it; CREATE INDEX" in said
