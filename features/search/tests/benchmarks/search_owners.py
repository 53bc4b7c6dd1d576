"""Measures semantic search for owners of every size in one table: recall against an exact scan, and
time, with a tenth of the rows and with all of them.

python -m features.search.tests.benchmarks.search_owners [ROWS]

The texts are real and repeat; each vector is that of its text plus noise. The last column is the
time of the SQL of the chosen plan alone, without the choice of the plan and without the API.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import fmean, median, quantiles
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
from httpx import AsyncClient
from numpy.typing import NDArray

from app.main import create_app
from features.search.embedding import Embedders, normalize, to_pgvector
from features.search.indexing import update_statistics
from features.search.indexing.documents import index_items
from features.search.indexing.models import add_model, prepare
from features.search.settings import SearchSettings
from features.search.tests.benchmarks.search_relevance import read
from shared.cache import open_cache
from shared.db import Database
from shared.db.tables import uuid7
from shared.settings import Settings
from tests.benchmarks.common import DATA, migrated_database, opened
from tests.kit import connect, sign_in

Vectors = NDArray[np.float32]

ROWS = 300_000
SHARES = (0.5, 0.2, 0.15, 0.08, 0.04, 0.02, 0.008, 0.0015, 0.0003, 0.0002)
TEXTS = 5_000
QUERIES = 40
BATCH = 2_000
NOISE = 0.5
FILTERS = {"none": 1000.0, "keeps 1 %": 10.0}  # prices are from 0 to 1,000
TIMES = "request ms p50 / p95"

EXACT = """
SELECT i.id FROM search_embeddings AS e JOIN items AS i ON i.id = e.item_id
WHERE e.owner_id = $1 AND i.price <= $3 ORDER BY (e.embedding <=> $2::text::halfvec) + 0 LIMIT 10
"""
NEAREST = """
SELECT plan FROM search_nearest($1, $4, $2::text::halfvec, 200, ''::tsquery, NULL,
    CASE WHEN $3 < 1000 THEN $3 END::numeric, NULL, NULL)
"""
BARE = """
SELECT i.id FROM (
    SELECT e.item_id, {embedding} <=> $2::text::halfvec AS distance FROM search_embeddings AS e
    WHERE e.model_id = {model} AND e.owner_id = $1 AND {condition} ORDER BY 2 LIMIT 200
) AS nearest JOIN items AS i ON i.id = nearest.item_id
WHERE i.price <= $3 ORDER BY distance + 0 LIMIT 10  -- sorted anew, or ten end the index scan
"""
AMONG = "e.item_id = ANY (ARRAY(SELECT id FROM items WHERE owner_id = $1 AND price <= $3))"
BARE_SETTINGS = """
SET max_parallel_workers_per_gather = 0; SET jit = off; SET plan_cache_mode = force_custom_plan;
SET hnsw.iterative_scan = relaxed_order; SET hnsw.ef_search = 1000;
SET hnsw.max_scan_tuples = 100000; SET hnsw.scan_mem_multiplier = 8; SET enable_sort = off
"""
SIZES = """
SELECT relation, pg_size_pretty(pg_relation_size(relation)) FROM unnest(ARRAY[
    'search_documents', 'ix_search_documents_terms', 'search_embeddings', $1
]::regclass[]) AS relation
"""


@dataclass(frozen=True)
class Cell:
    """The measurements of one owner and filter; milliseconds of each query."""

    plan: str
    recall: float | None
    requests: Sequence[float]
    statements: Sequence[float]

    def __str__(self) -> str:
        recall = "-" if self.recall is None else f"{self.recall:.3f}"
        return f"{self.plan} | {recall} | {_times(self.requests)} | {_times(self.statements)}"


async def fill(
    database: Database, url: str, owners: Sequence[UUID], sizes: Sequence[int], vectors: Vectors
) -> int:
    """Inserts the items of all owners in random order, as in production, and their embeddings;
    returns the id of the model."""
    texts = read(DATA / "chorus").items[:TEXTS]
    random = np.random.default_rng(7)
    order = random.permutation(np.repeat(np.arange(len(owners)), sizes))
    connection = await asyncpg.connect(url)
    model = Embedders(SearchSettings(), open_cache(None)).configured
    await prepare(database, model, "english")
    known = await add_model(database, model)
    await connection.execute(f"DROP INDEX ix_search_embeddings_model_{known.id}")
    written = 0.0
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        chosen = list(islice(cycle(range(TEXTS)), start, start + len(part)))
        items = [
            (uuid7(), owners[owner], texts[text]["title"][:200], texts[text].get("description"))
            for owner, text in zip(part, chosen, strict=True)
        ]
        prices = random.uniform(0.01, 1000, len(part)).round(2).tolist()
        began = time.perf_counter()
        await connection.execute(
            "INSERT INTO items (id, owner_id, title, description, price) "
            "SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::float[])",
            *zip(*items, strict=True),
            prices,
        )
        for owner in set(part.tolist()):
            ids = [item[0] for item in items if item[1] == owners[owner]]
            async with database.transaction() as session:
                await index_items(session, owners[owner], ids)
        written += time.perf_counter() - began
        noise = random.normal(size=(len(part), vectors.shape[1])) * NOISE / vectors.shape[1] ** 0.5
        await connection.execute(
            "INSERT INTO search_embeddings (item_id, model_id, owner_id, text_hash, embedding) "
            "SELECT id, $4, owner, '', vector::halfvec "
            "FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS e (id, owner, vector)",
            [item[0] for item in items],
            [item[1] for item in items],
            [to_pgvector(normalize(vector)) for vector in vectors[chosen] + noise],
            known.id,
        )
    print(f"insert and index: {len(order) / written:,.0f} items/s")
    began = time.perf_counter()
    while await update_statistics(database):
        pass
    print(f"term statistics: {len(order) / (time.perf_counter() - began):,.0f} items/s")
    await connection.execute("TRUNCATE search_queue")  # all items are embedded already
    await connection.execute("SET maintenance_work_mem = '1GB'")
    began = time.perf_counter()
    await connection.execute("SELECT search_create_index($1, $2)", known.id, model.dimension)
    took = time.perf_counter() - began
    await connection.execute("VACUUM ANALYZE")
    relations = await connection.fetch(SIZES, f"ix_search_embeddings_model_{known.id}")
    listed = ", ".join(f"{relation} {size}" for relation, size in relations)
    print(f"HNSW index: built in {took:.0f} s; {listed}")
    await connection.close()
    return known.id


async def compare(
    client: AsyncClient, url: str, owner: UUID, queries: Vectors, max_price: float, model: int
) -> Cell:
    """Runs all queries through the API, then all as bare SQL, both with a warm cache."""
    connection = await asyncpg.connect(url)
    await connection.execute(BARE_SETTINGS)
    recalls, requests, statements, plan = [], [], [], "none"
    vectors = [to_pgvector(query) for query in queries]
    exact = [await connection.fetch(EXACT, owner, vector, max_price) for vector in vectors]
    for vector in vectors:  # warm-up: the exact scans have read the whole table
        plan = await connection.fetchval(NEAREST, owner, vector, max_price, model) or "none"
    for query, expected in zip(queries, exact, strict=True):
        body: dict[str, Any] = {"vector": query.tolist()}
        if max_price < 1000:
            body["max_price"] = max_price
        began = time.perf_counter()
        answer = await client.post("/search/vector", json=body)
        requests.append((time.perf_counter() - began) * 1000)
        found = {hit["item"]["id"] for hit in answer.json()["hits"]}
        if expected:
            recalls.append(len(found & {str(row["id"]) for row in expected}) / len(expected))
    bare = BARE.format(
        embedding=f"e.embedding::halfvec({queries.shape[1]})" if plan == "index" else "e.embedding",
        condition=AMONG if max_price < 1000 else "true",
        model=model,
    )
    for vector in vectors:
        began = time.perf_counter()
        await connection.fetch(bare, owner, vector, max_price)
        statements.append((time.perf_counter() - began) * 1000)
    await connection.close()
    return Cell(plan, fmean(recalls) if recalls else None, requests, statements)


def _times(values: Sequence[float]) -> str:
    percentiles = quantiles(values, n=20, method="inclusive")
    return f"{percentiles[9]:.1f} / {percentiles[18]:.1f}"


async def embed(texts: Sequence[str]) -> Vectors:
    embedders = Embedders(SearchSettings(), open_cache(None))
    embedder = embedders.get(embedders.configured)
    assert embedder
    vectors = np.array(await embedder.embed_documents(texts))
    await embedders.close()
    return vectors


async def measure(
    settings: Settings, rows: int, vectors: Vectors, queries: Vectors
) -> dict[tuple[float, str], Cell]:
    """Fills a database and measures each owner; returns the cells by owner's share and filter."""
    assert settings.database_url
    sizes = [max(1, round(rows * share)) for share in SHARES]
    app = create_app(settings, run_tasks=False)
    async with app.router.lifespan_context(app), opened(settings) as database:
        clients = [connect(app, timeout=60) for _ in sizes]
        entered = [await client.__aenter__() for client in clients]
        for number, client in enumerate(entered):
            await sign_in(app, client, f"owner-{number}@example.com")
        owners = [UUID((await client.get("/users/me")).json()["id"]) for client in entered]
        print(f"\n{rows:,} rows")
        model = await fill(database, settings.database_url, owners, sizes, vectors)
        print(f"\n| owner's rows | price filter | plan | recall@10 | {TIMES} | bare SQL |")
        print("|---|---|---|---|---|---|")
        cells = {}
        for share, size, owner, client in zip(SHARES, sizes, owners, entered, strict=True):
            for kept, max_price in FILTERS.items():
                cell = await compare(
                    client, settings.database_url, owner, queries, max_price, model
                )
                cells[share, kept] = cell
                print(f"| {size:,} | {kept} | {cell} |", flush=True)
    return cells


def main() -> None:
    if not DATA.exists():
        print(f"search owners: no trial data at {DATA}")
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    collection = read(DATA / "chorus")
    texts = [f"{i['title']}\n{i.get('description') or ''}" for i in collection.items[:TEXTS]]
    vectors = asyncio.run(embed(texts))
    queries = asyncio.run(embed(list(collection.queries.values())[:QUERIES]))
    measured = []
    for part in (rows // 10, rows):
        with migrated_database() as settings:
            measured.append(asyncio.run(measure(settings, part, vectors, queries)))
    fewer, more = measured
    print(f"\n| owner's share | price filter | ms of {rows // 10:,} | of {rows:,} | ratio |")
    print("|---|---|---|---|---|")
    for (share, kept), cell in more.items():
        before, after = median(fewer[share, kept].requests), median(cell.requests)
        print(f"| {share:.2%} | {kept} | {before:.1f} | {after:.1f} | {after / before:.1f} |")


if __name__ == "__main__":
    main()
