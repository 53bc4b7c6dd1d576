"""`doctor` names each difference from what the migrations make, and the statement that mends it."""

import asyncio
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from app import migrations
from app.definitions import file_of, read_definitions, render_definitions
from app.discovery import find_features
from app.embedded import ensure_database, wheel_binaries
from app.migrations import load_revisions, schema_state, upgrade
from app.schema_drift import Difference, find_differences
from shared.db.connecting import connector
from shared.db.database import new_engine
from tests.kit import eventually
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
    "a disabled trigger": (
        "ALTER TABLE sessions DISABLE TRIGGER revoke",
        "trigger revoke ON sessions",
    ),
    "disabled foreign keys": (
        "ALTER TABLE outbox_failures DISABLE TRIGGER ALL",
        "table outbox_failures",
    ),
    "a trigger of replicas": (
        "ALTER TABLE sessions ENABLE REPLICA TRIGGER revoke",
        "trigger revoke ON sessions",
    ),
    "a trigger of replicas too": (
        "ALTER TABLE sessions ENABLE ALWAYS TRIGGER revoke",
        "trigger revoke ON sessions",
    ),
    "an unlogged table": ("ALTER TABLE items SET UNLOGGED", "table items"),
    "a logged table": ("ALTER TABLE staged_items SET LOGGED", "table staged_items"),
    "row level security": ("ALTER TABLE items ENABLE ROW LEVEL SECURITY", "table items"),
    "that of the owner": ("ALTER TABLE items FORCE ROW LEVEL SECURITY", "table items"),
    "no replica identity": ("ALTER TABLE items REPLICA IDENTITY NOTHING", "table items"),
    "a policy": ("CREATE POLICY mine ON items USING (price < 1)", "policy mine ON items"),
    "a rule": (
        "CREATE RULE lose AS ON DELETE TO items DO INSTEAD NOTHING",
        "rule lose ON items",
    ),
    "an index": ("DROP INDEX ix_items_owner_id_price", "index ix_items_owner_id_price ON items"),
    "an index of other columns": (
        "DROP INDEX ix_items_owner_id_price;"
        " CREATE INDEX ix_items_owner_id_price ON items (price, id)",
        "index ix_items_owner_id_price ON items",
    ),
    "a partial index": ("DROP INDEX uq_users_email", "index uq_users_email ON users"),
    "an index whose build failed": (
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'ix_items_owner_id_price'::regclass",
        "index ix_items_owner_id_price ON items",
    ),
    "what a failed REINDEX CONCURRENTLY leaves": (
        "CREATE INDEX ix_items_owner_id_price_ccnew ON items (owner_id, price, id);"
        " UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'ix_items_owner_id_price_ccnew'::regclass",
        "index ix_items_owner_id_price_ccnew ON items",
    ),
    "an invalid index of a constraint": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pk_items'::regclass",
        "index pk_items ON items",
    ),
    "a unique constraint": (
        "ALTER TABLE items DROP CONSTRAINT uq_items_owner_id_external_id",
        "constraint uq_items_owner_id_external_id ON items",
    ),
    "a unique constraint at the end of a transaction": (
        "ALTER TABLE items DROP CONSTRAINT uq_items_owner_id_external_id,"
        " ADD CONSTRAINT uq_items_owner_id_external_id UNIQUE (owner_id, external_id)"
        " DEFERRABLE INITIALLY DEFERRED",
        "constraint uq_items_owner_id_external_id ON items",
    ),
    "a check": (
        "ALTER TABLE items DROP CONSTRAINT ck_items_price_positive",
        "constraint ck_items_price_positive ON items",
    ),
    "another check": (
        "ALTER TABLE items DROP CONSTRAINT ck_items_price_positive,"
        " ADD CONSTRAINT ck_items_price_positive CHECK (price > -1)",
        "constraint ck_items_price_positive ON items",
    ),
    "a check of new rows": (
        "ALTER TABLE items DROP CONSTRAINT ck_items_price_positive,"
        " ADD CONSTRAINT ck_items_price_positive CHECK (price > 0) NOT VALID",
        "constraint ck_items_price_positive ON items",
    ),
    "a foreign key": (
        "ALTER TABLE outbox_failures DROP CONSTRAINT fk_outbox_failures_owner_id_change_id",
        "constraint fk_outbox_failures_owner_id_change_id ON outbox_failures",
    ),
    "a deferrable foreign key": (
        "ALTER TABLE outbox_failures"
        " ALTER CONSTRAINT fk_outbox_failures_owner_id_change_id DEFERRABLE",
        "constraint fk_outbox_failures_owner_id_change_id ON outbox_failures",
    ),
    "a foreign key that keeps its rows": (
        "ALTER TABLE outbox_failures DROP CONSTRAINT fk_outbox_failures_owner_id_change_id,"
        " ADD CONSTRAINT fk_outbox_failures_owner_id_change_id FOREIGN KEY (owner_id, change_id)"
        " REFERENCES outbox_changes (owner_id, id)",
        "constraint fk_outbox_failures_owner_id_change_id ON outbox_failures",
    ),
    "a primary key": (
        "ALTER TABLE periodic_tasks DROP CONSTRAINT pk_periodic_tasks",
        "constraint pk_periodic_tasks ON periodic_tasks",
    ),
    "the type of a column": ("ALTER TABLE users ALTER name TYPE char(30)", "column name ON users"),
    "the precision of a column": (
        "ALTER TABLE items ALTER price TYPE numeric(12, 3)",
        "column price ON items",
    ),
    "a collation": (
        'ALTER TABLE items ALTER title TYPE varchar COLLATE "C"',
        "column title ON items",
    ),
    "NOT NULL": ("ALTER TABLE items ALTER title DROP NOT NULL", "column title ON items"),
    "NOT NULL too many": (
        "ALTER TABLE items ALTER description SET NOT NULL",
        "column description ON items",
    ),
    "a column that no INSERT names": (
        "ALTER TABLE items ADD noted text NOT NULL",
        "column noted ON items",
    ),
    "a default": ("ALTER TABLE items ALTER created_at DROP DEFAULT", "column created_at ON items"),
    "another default": (
        "ALTER TABLE items ALTER created_at SET DEFAULT '2000-01-01, 00:00'",
        "column created_at ON items",
    ),
    "a default too many": (
        "ALTER TABLE items ALTER title SET DEFAULT 'a, b'",
        "column title ON items",
    ),
    "an identity": (
        "ALTER TABLE outbox_changes ALTER id DROP IDENTITY",
        "column id ON outbox_changes",
    ),
}
SELECT_REBUILD = """
SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase = $1
"""


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
        statements = difference.mend.partition(", as a superuser")[0]
        for statement in statements.split("; "):  # CONCURRENTLY has a transaction of its own
            await execute(url, statement)


async def test_a_migrated_database_has_no_differences(database_url: str) -> None:
    assert await differences(database_url) == []


async def test_a_restored_database_has_no_differences(database_url: str) -> None:
    name = f"restored_{secrets.token_hex(8)}"
    restored = make_url(database_url).set(database=name).render_as_string(hide_password=False)
    binaries = wheel_binaries()
    await execute(database_url, f"CREATE DATABASE {name}")
    try:
        done = await asyncio.create_subprocess_shell(
            f'{binaries}/pg_dump "{database_url}"'
            f' | {binaries}/psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 "{restored}"',
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await done.wait() == 0
        assert await differences(restored) == []
    finally:
        await execute(database_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    "setting", ["quote_all_identifiers = on", "standard_conforming_strings = off"]
)
async def test_a_setting_of_how_sql_is_written_is_no_difference(
    database_url: str, setting: str
) -> None:
    database = make_url(database_url).database
    await execute(database_url, f'ALTER DATABASE "{database}" SET {setting}')
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


async def test_a_generated_column_is_named(database_url: str) -> None:
    added = "ALTER TABLE items DROP description, ADD description varchar"
    await execute(database_url, f"{added} GENERATED ALWAYS AS ('none') STORED")
    (generated,) = await differences(database_url)
    assert generated.subject == "column description ON items"
    assert generated.state.startswith("GENERATED ALWAYS AS ('none'")
    await execute(database_url, added)
    assert await differences(database_url) == []


async def test_what_is_found_is_said_beside_what_is_expected(database_url: str) -> None:
    await execute(database_url, "ALTER TABLE items ALTER title DROP NOT NULL")
    await execute(database_url, "ALTER TABLE items ALTER title SET DEFAULT 'a, b'")
    (column,) = await differences(database_url)
    assert column.advice == (
        "DROP NOT NULL, SET DEFAULT 'a, b'::character varying instead of"
        " SET NOT NULL, DROP DEFAULT;"
        " ALTER TABLE items ALTER title SET NOT NULL, ALTER title DROP DEFAULT"
    )


async def test_an_unlogged_partition_is_named(database_url: str) -> None:
    await partition_items(database_url)
    await execute(database_url, "ALTER TABLE items_1 SET UNLOGGED")
    (table,) = await differences(database_url)
    assert (table.subject, table.state) == ("table items", "SET UNLOGGED instead of SET LOGGED")
    await execute(database_url, "ALTER TABLE items_1 SET LOGGED")
    assert await differences(database_url) == []


async def test_partitioned_items_are_no_difference(database_url: str) -> None:
    await partition_items(database_url)
    assert await differences(database_url) == []


async def partition_items(url: str) -> None:
    """Partitions the table as `migrations/README.md` says."""
    guide = (ROOT / "migrations/README.md").read_text()
    [recipe] = re.findall(r"```sql\n(ALTER TABLE items .*?)```", guide, re.DOTALL)
    await execute(url, recipe.replace(":cut", f"'{UUID(int=1)}'"))


async def test_an_index_that_is_left_of_a_rebuild_is_dropped(database_url: str) -> None:
    fault, _ = FAULTS["what a failed REINDEX CONCURRENTLY leaves"]
    await execute(database_url, fault)
    (index,) = await differences(database_url)
    assert index.mend == "DROP INDEX CONCURRENTLY ix_items_owner_id_price_ccnew"


@pytest.mark.parametrize(
    ("held", "phase"),
    [
        ("LOCK TABLE items IN ROW EXCLUSIVE MODE", "waiting for writers before build"),
        ("LOCK TABLE items IN ACCESS SHARE MODE", "waiting for readers before marking dead"),
    ],
)
async def test_an_index_is_not_invalid_while_it_is_rebuilt(
    database_url: str, held: str, phase: str
) -> None:
    async with (
        asyncpg.create_pool(database_url, min_size=1) as pool,
        pool.acquire() as holder,
        pool.acquire() as rebuilder,
    ):
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(held)
        rebuilt = asyncio.create_task(rebuilder.execute("REINDEX TABLE CONCURRENTLY items"))
        try:
            await eventually(lambda: pool.fetch(SELECT_REBUILD, phase), phase)
            assert await differences(database_url) == []
        finally:
            await transaction.rollback()
            await rebuilt
    assert await differences(database_url) == []


@pytest.mark.parametrize(
    ("loss", "subject"),
    [
        ("DROP TABLE items CASCADE", "table items"),
        ("ALTER TABLE users DROP name", "column name ON users"),
        ("ALTER TABLE sessions DROP user_id", "column user_id ON sessions"),
    ],
)
async def test_what_had_values_is_restored(database_url: str, loss: str, subject: str) -> None:
    await execute(database_url, loss)
    advice = {each.subject: each.advice for each in await differences(database_url)}
    assert advice[subject] == "missing; restore it from a backup"


async def test_what_somebody_has_added_is_no_difference(database_url: str) -> None:
    for added in (
        "CREATE INDEX for_reports ON items (title)",
        "ALTER INDEX ix_items_owner_id_price SET (fillfactor = 80)",
        "ALTER TABLE items REPLICA IDENTITY FULL",
        "ALTER TABLE items SET (autovacuum_vacuum_scale_factor = 0.01)",
        "ALTER TABLE items ADD noted text",
        "ALTER TABLE items ADD counted integer NOT NULL DEFAULT 0",
        "ALTER TABLE items ADD CHECK (price < 1000000)",
        "CREATE UNLOGGED TABLE reports ()",
        'CREATE TABLE "in two\nlines" ("a\n" int NOT NULL)',
        "CREATE RULE none AS ON INSERT TO reports DO INSTEAD NOTHING",
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


def test_a_comment_in_a_function_names_no_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "-- INDEX scans are slow here\n-- TABLE items: is large\n\n-- FUNCTION calls too"
    made = {
        "TABLE items": "SET LOGGED",
        "FUNCTION total()": f"CREATE OR REPLACE FUNCTION total()\nAS $$\n{body}\nSELECT 1\n;\n$$",
        "TRIGGER count ON items": "CREATE OR REPLACE TRIGGER count AFTER INSERT ON items",
    }
    monkeypatch.setattr(migrations, "ROOT", tmp_path)
    file = file_of("items")
    file.parent.mkdir()
    file.write_text(render_definitions(made))
    assert read_definitions(["items"]) == {name: (text, file) for name, text in made.items()}


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
        "index ix_items_owner_id_price ON items: missing; CREATE INDEX CONCURRENTLY ix_items_owner",
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
        assert f"wrong index ix_items_owner_id_price ON items{of}: missing; CREATE INDEX" in said
