"""The files in sql/ define what the migrated database has, and `make migration` follows them."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.script import Script

from app import migrations
from app.migrations import alembic_config
from app.scaffold import definitions, revising
from app.scaffold.definitions import compare_definitions
from app.scaffold.linting import unsafe_operations
from app.scaffold.revising import NothingToRevise, write_revision
from features.search.query.ranking import BM25_B, BM25_K1
from features.search.tests.test_indexing import Database, database
from tests.kit import Server
from tests.operations.test_doctor import doctor

__all__ = ["database"]

ROOT = Path(__file__).parents[3]
SQL = Path(__file__).parents[1] / "sql"

CHANGES = {
    "one more": "CREATE FUNCTION search_more() RETURNS int LANGUAGE sql RETURN 1",
    "one less": "DROP FUNCTION search_nearest",
    "one character": """
        DO $do$ BEGIN
            EXECUTE replace(
                pg_get_functiondef('search_nearest'::regproc), '125 * wanted', '126 * wanted');
        END $do$
    """,
    "a trigger": """
        CREATE TRIGGER search_more BEFORE UPDATE ON search_owners
        FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()
    """,
    "a dictionary": "SELECT search_set_language('german', true)",
}

NEW_TRIGGER = """
CREATE TRIGGER search_owners_changed BEFORE UPDATE ON search_owners
FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
"""


async def test_the_database_has_what_the_files_define(database_url: str) -> None:
    found, defined = await compare_definitions(database_url, "search")
    assert found == defined
    assert len([name for name in defined if " search" in name]) == 15


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.one_server
async def test_a_difference_is_found(change: str, database: Database, database_url: str) -> None:
    await database.execute(change)
    found, defined = await compare_definitions(database_url, "search")
    assert found != defined


@pytest.mark.verify
async def test_the_doctor_names_what_search_lacks(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    await database.execute("DROP FUNCTION search_nearest")
    await database.execute("DROP INDEX ix_search_words_reversed")
    await database.execute("ALTER EXTENSION unaccent DROP FUNCTION unaccent(text)")
    await database.execute("ALTER FUNCTION unaccent(text) RENAME TO gone")
    await database.execute("""
        DO $do$ BEGIN
            EXECUTE replace(pg_get_functiondef('search_dimension'::regproc), '7', '6');
        END $do$
    """)
    said, status = await asyncio.to_thread(doctor, tmp_path, database_url)
    assert status == 1
    for named in (
        "function search_nearest(",
        "function search_dimension(text): not as the migrations make it; psql",
        "index ix_search_words_reversed ON search_words: missing; CREATE INDEX CONCURRENTLY"
        " ix_search_words_reversed ON public.search_words USING btree (owner_id, reverse(word))",
        "extension unaccent: fails: ",
    ):
        assert f"wrong {named}" in said, said


async def test_what_runs_as_the_owner_uses_nothing_of_the_caller(database: Database) -> None:
    await database.execute("CREATE TEMP TABLE pg_ts_config_map (LIKE pg_catalog.pg_ts_config_map)")
    await database.execute("SELECT search_set_language('german', true)")
    stem = await database.fetchval("SELECT to_tsvector('search', 'Katzen')::text")
    assert stem == "'katz':1"


async def test_documents_are_weighed_with_the_constants_of_the_ranking(database: Database) -> None:
    weight = await database.fetchval(
        """
        SELECT -(search_weights(terms, length => 9, average_length => 4, k1 => $1, b => $2)
            <#> search_vector(ARRAY[search_dimension('mug')], ARRAY[1]::real[]))
        FROM to_tsvector('search', 'mug mug mug') AS terms
    """,
        BM25_K1,
        BM25_B,
    )
    saturation = BM25_K1 * (1 - BM25_B + BM25_B * 9 / 4)
    assert weight == pytest.approx((BM25_K1 + 1) * 3 / (3 + saturation), rel=1e-5)


@pytest.mark.one_server
async def test_a_changed_file_becomes_a_revision(
    server: Server, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "features/search/sql"
    shutil.copytree(migrations.ROOT, tmp_path / "migrations")
    shutil.copytree(SQL, folder)
    for module in (migrations, definitions, revising):
        monkeypatch.setattr(module, "ROOT", tmp_path / "migrations")

    async def revise() -> Script:
        return await asyncio.to_thread(write_revision, server.admin_url, "search", "change")

    async def found_and_defined() -> tuple[dict[str, str], dict[str, str]]:
        return await compare_definitions(database_url, "search")

    with pytest.raises(NothingToRevise):
        await revise()
    before, _ = await found_and_defined()
    change(folder / "term_weights.sql", "(k1 + 1) * tf", "(k1 + 2) * tf")
    change(folder / "nearest.sql", "BEGIN", "BEGIN\n\tRAISE NOTICE '\\ % \n :one', 1;\n")
    with (folder / "documents.sql").open("a") as file:
        file.write(NEW_TRIGGER)
    revision = await revise()
    assert unsafe_operations(revision) == []
    ruff = (
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--config",
        ROOT / "pyproject.toml",
        revision.path,
    )
    checked = await asyncio.create_subprocess_exec(*ruff)
    assert await checked.wait() == 0
    await asyncio.to_thread(migrations.upgrade, database_url)
    found, defined = await found_and_defined()
    assert found == defined != before
    await asyncio.to_thread(command.downgrade, alembic_config(database_url), "search@-1")
    assert (await found_and_defined())[0] == before


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
