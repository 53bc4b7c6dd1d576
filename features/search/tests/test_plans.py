"""Both plans of the vector search against an exact scan; word searches use only the GIN index, and
read nothing of a neighbour."""

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
import orjson
import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import text

from features.items import Item
from features.search.embedding import EmbeddingModel, normalize, to_pgvector
from features.search.indexing import documents, embeddings, statistics, sweep
from features.search.indexing.models import prepare, registered_models
from features.search.query import ranking
from features.search.query.parsing import parse_query
from features.search.query.statement import search_statement
from features.search.schemas import Mode
from features.search.tasks import statistics_task
from shared.db import WriteSession, database_of
from shared.db.changes import Change, ChangeKind
from shared.db.statements import compile_statement
from shared.db.tables import delete_owned_rows, table_of
from tests.kit import run_until_idle

ITEMS, DIMENSION, WANTED = 2_000, 16, 10
MODEL = EmbeddingModel("openai", "words", DIMENSION)
INSERT_ITEMS = """
WITH given AS (
    SELECT gen_random_uuid() AS id, n, vector
    FROM unnest($2::text[]) WITH ORDINALITY AS v (vector, n)
), made AS (
    INSERT INTO items (id, owner_id, title, price) SELECT id, $1, 'Mug ' || n, n FROM given
    RETURNING id
)
SELECT array_agg(id), array_agg(vector) FROM made JOIN given USING (id)
"""
INSERT_EMBEDDINGS = """
INSERT INTO search_embeddings (item_id, model_id, owner_id, text_hash, embedding)
SELECT id, $2, $1, '', vector::halfvec FROM unnest($3::uuid[], $4::text[]) AS e (id, vector)
"""
SELECT_BY_PLAN = """
SELECT item_id, plan FROM search_nearest(
    $1, $2, $3::text::halfvec, $4, ''::tsquery, NULL, $5::numeric, NULL, NULL)
"""
SELECT_EXACTLY = """
SELECT item_id FROM search_embeddings JOIN items ON items.id = item_id
WHERE items.owner_id = $1 AND model_id = $2 AND ($5::numeric IS NULL OR price <= $5)
ORDER BY (embedding <=> $3::text::halfvec) + 0 LIMIT $4
"""
COUNT_INDEX_SCANS = """
SELECT sum(idx_scan) FROM pg_stat_user_indexes WHERE indexrelname LIKE 'ix_search_embeddings_model%'
"""


class Owner:
    """An owner with many items, and a database connection to query them."""

    def __init__(self, connection: "asyncpg.Connection[Any]", owner_id: UUID, model: int) -> None:
        self.connection, self.id, self.model = connection, owner_id, model

    async def nearest(self, max_price: int | None) -> tuple[str, float, int]:
        """Returns the plan, the recall against the exact results, and the number of rows found."""
        found, expected, plans = set(), set(), set()
        for n, query in enumerate(_vectors(10, seed=2)):
            values = (self.id, self.model, query, WANTED, max_price)
            rows = await self.connection.fetch(SELECT_BY_PLAN, *values)
            found |= {(n, row["item_id"]) for row in rows}
            plans |= {row["plan"] for row in rows}
            exact = await self.connection.fetch(SELECT_EXACTLY, *values)
            expected |= {(n, row["item_id"]) for row in exact}
        (plan,) = plans
        return plan, len(found & expected) / len(expected), len(found)


def _vectors(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [to_pgvector(normalize(vector)) for vector in random.normal(size=(count, DIMENSION))]


@pytest.fixture
async def owner(app: FastAPI, client: AsyncClient, database_url: str) -> AsyncIterator[Owner]:
    await prepare(database_of(app), MODEL, "english")
    (model,) = [registered.id for registered in await registered_models(database_of(app).read())]
    owner_id = UUID((await client.get("/users/me")).json()["id"])
    connection = await asyncpg.connect(database_url)
    made = await connection.fetchrow(INSERT_ITEMS, owner_id, _vectors(ITEMS, seed=1))
    assert made
    await sweep(database_of(app))
    await connection.execute(INSERT_EMBEDDINGS, owner_id, model, *made)
    await run_until_idle(app, statistics_task)
    yield Owner(connection, owner_id, model)
    await connection.close()


@pytest.mark.verify
async def test_each_plan_finds_the_nearest(owner: Owner) -> None:
    async def index_scans() -> int:
        await owner.connection.execute("SELECT pg_stat_force_next_flush()")
        return int(await owner.connection.fetchval(COUNT_INDEX_SCANS))

    for max_price in (None, 1_900):  # the filter keeps too many rows for an exact scan
        before = await index_scans()
        plan, recall, found = await owner.nearest(max_price)
        assert (plan, found) == ("index", 10 * WANTED)
        assert recall >= 0.95
        assert await index_scans() >= before + 10
    assert await owner.nearest(500) == ("exact", 1, 10 * WANTED)
    assert await owner.nearest(3) == ("exact", 1, 10 * 3)


@pytest.mark.verify
async def test_an_index_that_finds_too_few_is_not_believed(owner: Owner) -> None:
    await owner.connection.execute(
        "DELETE FROM search_embeddings WHERE item_id IN (SELECT id FROM items WHERE price > 7)"
    )
    assert await owner.nearest(None) == ("exact", 1, 10 * 7)


async def test_words_are_found_by_their_index_alone(owner: Owner) -> None:
    await owner.connection.execute("ANALYZE")
    sql, arguments = lexical_search(owner.id, "mug 77")
    rows = await owner.connection.fetch(f"EXPLAIN {sql}", *arguments)
    plan = "\n".join(row[0] for row in rows)
    matching = plan.partition("CTE matching_all")[2]
    assert "ix_search_documents_terms" in matching
    assert "pk_search_documents" not in matching
    assert "ix_search_documents_weights" not in plan
    assert "ix_items_owner_id" not in plan


def lexical_search(owner_id: UUID, q: str) -> tuple[str, Sequence[Any]]:
    values = parse_query(q).parameters | {
        "owner": owner_id,
        "min_full_matches": ranking.MIN_FULL_MATCHES,
        "max_retrieved_rows": ranking.MAX_RETRIEVED_ROWS,
        "typo_similarity": ranking.TYPO_SIMILARITY,
        "depth": 10,
        "limit": 10,
        "offset": 0,
        "replaced": "",
        "replacements": "",
        "title_options": "",
        "description_options": "",
    }
    return compile_statement(search_statement(Mode.LEXICAL, frozenset()), values)


ADD_NEIGHBOURS_ITEMS = """
INSERT INTO items (id, owner_id, title, price)
SELECT gen_random_uuid(), $1, format('Kettles%s headphone%s pan', n, n), 1
FROM generate_series(1, 4000) AS n
"""


async def test_a_search_reads_no_more_where_a_neighbour_has_thousands_of_such_words(
    app: FastAPI, client: AsyncClient, other_client: AsyncClient, database_url: str
) -> None:
    for title in ("Copper kettle", "Headphones", "Iron pan", "Kettledrum"):
        assert (await client.post("/items", json={"title": title, "price": 5})).is_success
    await run_until_idle(app, statistics_task)
    owner_id, neighbour_id = [
        UUID((await each.get("/users/me")).json()["id"]) for each in (client, other_client)
    ]
    connection = await asyncpg.connect(database_url)

    async def read_blocks(q: str) -> tuple[int, int]:
        """Returns the blocks that a search reads, and the number of hits."""
        sql, arguments = lexical_search(owner_id, q)
        await connection.execute("VACUUM ANALYZE")
        found = len(await connection.fetch(sql, *arguments))
        row = await connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *arguments
        )
        plan = orjson.loads(row)[0]["Plan"]
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], found

    # A word with a typo, one that may be unfinished, and a common one.
    queries = ("headphnes ", "kettl", "pan ", "copper headphnes kettl")
    alone = [await read_blocks(q) for q in queries]
    await connection.execute(ADD_NEIGHBOURS_ITEMS, neighbour_id)
    await sweep(database_of(app))
    await run_until_idle(app, statistics_task)
    beside = [await read_blocks(q) for q in queries]
    await connection.close()
    assert [found for _, found in alone] == [found for _, found in beside] == [1, 2, 1, 3]
    for (before, _), (after, _), q in zip(alone, beside, queries, strict=True):
        assert after <= before + 60, q  # the indexes are deeper


async def test_a_vector_search_reads_nothing_of_a_neighbour_with_thousands(
    app: FastAPI, other_client: AsyncClient, owner: Owner
) -> None:
    for title in ("Copper kettle", "Iron pan"):
        assert (await other_client.post("/items", json={"title": title, "price": 5})).is_success
    await run_until_idle(app, statistics_task)
    owner_id = UUID((await other_client.get("/users/me")).json()["id"])
    ids = await owner.connection.fetchval(
        "SELECT array_agg(id) FROM items WHERE owner_id = $1", owner_id
    )
    vectors = _vectors(2, seed=3)
    await owner.connection.execute(INSERT_EMBEDDINGS, owner_id, owner.model, ids, vectors)
    await owner.connection.execute("VACUUM ANALYZE")
    for max_price in (None, 7):
        values = (owner_id, owner.model, vectors[0], WANTED, max_price)
        rows = await owner.connection.fetch(SELECT_BY_PLAN, *values)
        assert [row["plan"] for row in rows] == ["exact"] * 2
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {SELECT_BY_PLAN}"
        plan = orjson.loads(await owner.connection.fetchval(explain, *values))[0]["Plan"]
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 60


IMPORTED = 5_000
ROWS_READ = text("""
SELECT CAST(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) AS bigint)
FROM pg_stat_xact_user_tables
""")
MARK_WEIGHTS_OUTDATED = text("""
UPDATE search_documents SET average_length = average_length * 9 WHERE owner_id = :owner
""")
FAIL_ONE = text("""
UPDATE search_queue SET attempts = 1 WHERE owner_id = :owner
AND item_id = (SELECT min(CAST(item_id AS text)) FROM search_queue WHERE owner_id = :owner)::uuid
""")
MARK_OWNER_STALE = text("UPDATE search_owners SET stale = true WHERE owner_id = :owner")


@pytest.fixture
async def importer(
    app: FastAPI, client: AsyncClient, other_client: AsyncClient, database_url: str
) -> UUID:
    """An owner who has imported items since the planner's statistics were collected."""
    await prepare(database_of(app), MODEL, "english")
    await _import(other_client, 300)
    await run_until_idle(app, statistics_task)
    connection = await asyncpg.connect(database_url)
    for table in ("items", "search_documents", "search_pending", "search_queue"):
        await connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    await connection.execute("ANALYZE")
    await connection.close()
    await _import(client, IMPORTED)
    return UUID((await client.get("/users/me")).json()["id"])


async def _import(client: AsyncClient, count: int) -> None:
    lines = "\n".join(f'{{"title": "Kettle k{n}", "price": 5}}' for n in range(count))
    headers = {"Content-Type": "application/jsonl"}
    assert (await client.post("/items/import", content=lines, headers=headers)).is_success


async def _rows_read(session: WriteSession) -> int:
    return int(await session.fetch_value(ROWS_READ))


async def test_a_batch_of_statistics_reads_each_item_of_its_owner_a_few_times(
    app: FastAPI, importer: UUID
) -> None:
    async with database_of(app).transaction() as session:
        before = await _rows_read(session)
        claimed = await statistics._claim(session, importer, None)
        claim_read = await _rows_read(session) - before
        await statistics._count(session, importer, [row.item_id for row in claimed])
        count_read = await _rows_read(session) - before - claim_read
    assert len(claimed) == statistics.ITEMS_PER_BATCH
    assert claim_read <= 5 * IMPORTED
    assert count_read <= 30 * IMPORTED


async def test_a_batch_of_weights_reads_each_item_of_its_owner_a_few_times(
    app: FastAPI, importer: UUID
) -> None:
    await run_until_idle(app, statistics_task)
    async with database_of(app).transaction() as session:
        for statement in (MARK_WEIGHTS_OUTDATED, MARK_OWNER_STALE):
            await session.execute(statement, {"owner": importer})
        before = await _rows_read(session)
        assert await statistics._recompute(session, importer, 500) == 500
        assert await _rows_read(session) - before <= 10 * IMPORTED


async def test_a_batch_of_embeddings_reads_each_item_of_its_owner_a_few_times(
    app: FastAPI, importer: UUID
) -> None:
    await run_until_idle(app, statistics_task)
    [registered] = await registered_models(database_of(app).read())
    async with database_of(app).transaction() as session:
        before = await _rows_read(session)
        entries = await embeddings._claim(session, registered)
        read = await _rows_read(session) - before
    assert len(entries) == embeddings.ENTRIES_PER_BATCH
    assert read <= 10 * IMPORTED


async def test_a_retry_is_claimed_without_reading_what_was_never_tried(
    app: FastAPI, importer: UUID
) -> None:
    await run_until_idle(app, statistics_task)
    [registered] = await registered_models(database_of(app).read())
    async with database_of(app).transaction() as session:
        for failed in (0, 1):
            before = await _rows_read(session)
            entries = await embeddings._claim(session, registered, again=True)
            assert len(entries) == failed
            assert await _rows_read(session) - before <= 20
            await session.execute(FAIL_ONE, {"owner": importer})


async def test_deleting_an_account_reads_each_of_its_rows_a_few_times(
    app: FastAPI, importer: UUID
) -> None:
    await run_until_idle(app, statistics_task)
    deleted = Change("users", ChangeKind.DELETED, importer, [])
    async with database_of(app).transaction() as session:
        before = await _rows_read(session)
        assert await documents.forget_account(session, deleted) >= IMPORTED
        assert await delete_owned_rows(session, table_of(Item), importer) == IMPORTED
        assert await _rows_read(session) - before <= 50 * IMPORTED
