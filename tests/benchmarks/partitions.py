"""Compares tables of items and search partitioned by owner with plain tables of the same rows.

python -m tests.benchmarks.partitions [ROWS]

The owners' sizes follow a Zipf-like distribution. Both sides take turns. A ratio is the value of
the partitioned tables divided by that of the plain ones: above 1 they are slower, or larger.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.benchmarks.common import migrated_database

if TYPE_CHECKING:
    Connection = asyncpg.Connection[Any]

ROWS = 200_000
OWNERS = 1_000
PARTITIONS = 16
ROUNDS = 30
STATEMENTS = 20  # of each kind in a round
TIMEOUT_SECONDS = 3_600
SIDES = ("plain", "parted")
KEYS = {"items": "id", "search_documents": "item_id", "search_embeddings": "item_id, model_id"}
INDEXES = """
SELECT indexdef FROM pg_indexes
WHERE schemaname = 'public' AND tablename = $1 AND indexname NOT LIKE 'pk_%'
"""
# Draws the rank of each row's owner with a density proportional to 1/x, from 1 to the number of
# owners.
FILLING = """
CREATE TABLE owners AS
SELECT rank, gen_random_uuid() AS id FROM generate_series(1, {owners}) AS rank;
CREATE TABLE filling AS
SELECT gen_random_uuid() AS id, owners.id AS owner_id, 'Series ' || n % 100 AS description,
    (ARRAY['Enamel', 'Glass', 'Steel', 'Oak', 'Linen'])[1 + n % 5] || ' '
    || (ARRAY['mug', 'bowl', 'lamp', 'chair', 'towel', 'clock', 'vase'])[1 + n % 7]
    || ' no. ' || n AS title
FROM (
    SELECT n, floor(exp(random() * ln({owners})))::int AS owner FROM generate_series(1, {rows}) AS n
) AS drawn JOIN owners ON owners.rank = drawn.owner;
"""
LOADS = {
    "items": """
INSERT INTO {side}.items (id, owner_id, title, description, price)
SELECT id, owner_id, title, description, 5 FROM filling
""",
    "search_documents": """
INSERT INTO {side}.search_documents
    (item_id, owner_id, terms, length, average_length, weights_version, weights, text_hash)
SELECT id, owner_id,
    search_lexemes(title, description) || array_to_tsvector(ARRAY[owner_id::text]),
    8, 8, 1, '{{}}/268435456', '' FROM filling
""",
    "search_embeddings": """
INSERT INTO {side}.search_embeddings (item_id, model_id, owner_id, text_hash, embedding)
SELECT id, 1, owner_id, '', vector::halfvec FROM vectors
""",
}
VECTORS = """
CREATE TABLE vectors AS
SELECT id, owner_id, array_agg(random() - 0.5)::real[]::vector AS vector
FROM (SELECT id, owner_id FROM filling ORDER BY id LIMIT {rows} / 10) AS few,
    generate_series(1, 384)
GROUP BY id, owner_id
"""
STATEMENTS_BY_NAME = {
    "insert": (
        "owner",
        "INSERT INTO {side}.items (id, owner_id, title, price)"
        " VALUES (gen_random_uuid(), $1, 'Oak chair', 5)",
    ),
    "get by owner and id": (
        "owner id",
        "SELECT * FROM {side}.items WHERE owner_id = $1 AND id = $2",
    ),
    "first page of the list": (
        "owner",
        "SELECT * FROM {side}.items WHERE owner_id = $1 ORDER BY created_at DESC, id DESC LIMIT 20",
    ),
    "count": ("owner", "SELECT count(*) FROM {side}.items WHERE owner_id = $1"),
    "words, owner as a lexeme": (
        "owner",
        "SELECT item_id FROM {side}.search_documents WHERE terms @@ ("
        "quote_literal($1::uuid::text)::tsquery && 'steel & clock')",
    ),
    "words, owner_id named too": (
        "owner",
        "SELECT item_id FROM {side}.search_documents WHERE owner_id = $1 AND terms @@ ("
        "quote_literal($1::uuid::text)::tsquery && 'steel & clock')",
    ),
}
HNSW = """
CREATE INDEX ON {table} USING hnsw ((embedding::halfvec(384)) halfvec_cosine_ops)
WITH (m = 24, ef_construction = 400)
"""
CHURN = """
UPDATE {side}.items SET price = 6
WHERE id IN (SELECT id FROM filling ORDER BY id LIMIT {rows} / 10)
"""
SIZE = """
SELECT sum(pg_total_relation_size(c.oid))::float FROM pg_class AS c
WHERE c.relnamespace = $1::regnamespace AND c.relkind = 'r' AND c.relname ~ '^(items|search_doc)'
"""

Times = dict[str, dict[str, list[float]]]


async def timed(connection: "Connection", statement: str, *arguments: object) -> float:
    """Runs a statement and returns its milliseconds."""
    started = time.perf_counter()
    await connection.fetch(statement, *arguments, timeout=TIMEOUT_SECONDS)
    return (time.perf_counter() - started) * 1000


async def create(connection: "Connection") -> None:
    """Creates the tables of the migrations, plain and partitioned, without foreign keys and
    triggers."""
    for side in SIDES:
        await connection.execute(f"CREATE SCHEMA {side}")
    for table, key in KEYS.items():
        await connection.execute(f"CREATE TABLE plain.{table} (LIKE {table} INCLUDING ALL)")
        await connection.execute(
            f"CREATE TABLE parted.{table} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS, "
            f"PRIMARY KEY (owner_id, {key})) PARTITION BY HASH (owner_id)"
        )
        for (definition,) in await connection.fetch(INDEXES, table):
            await connection.execute(definition.replace(" ON public.", " ON parted."))
        for part in range(PARTITIONS):
            await connection.execute(
                f"CREATE TABLE parted.{table}_{part} PARTITION OF parted.{table} "
                f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {part})"
            )


async def load(connection: "Connection", rows: int) -> Mapping[str, Mapping[str, float]]:
    """Fills the tables; returns the milliseconds of each, by side."""
    await connection.execute(FILLING.format(owners=OWNERS, rows=rows), timeout=TIMEOUT_SECONDS)
    await connection.execute(VECTORS.format(rows=rows), timeout=TIMEOUT_SECONDS)
    times = {
        f"fill {table}": {
            side: await timed(connection, statement.format(side=side)) for side in SIDES
        }
        for table, statement in LOADS.items()
    }
    await connection.execute("VACUUM ANALYZE", timeout=TIMEOUT_SECONDS)
    return times


async def ask(connection: "Connection") -> Times:
    """Measures the milliseconds of the service's statements. Rows are drawn at random, so that
    large owners occur often."""
    random = Random(7)  # the same sequence in every run
    known = await connection.fetch("SELECT owner_id, id FROM filling")
    times: Times = {name: {side: [] for side in SIDES} for name in STATEMENTS_BY_NAME}
    for _ in range(ROUNDS):
        drawn = random.choices(known, k=STATEMENTS)
        for name, (names, statement) in STATEMENTS_BY_NAME.items():
            for side in random.sample(SIDES, len(SIDES)):
                spent = 0.0
                for row in drawn:
                    values = {"owner": row["owner_id"], "id": row["id"]}
                    arguments = [values[each] for each in names.split()]
                    spent += await timed(connection, statement.format(side=side), *arguments)
                times[name][side].append(spent / STATEMENTS)
    return times


async def maintain(connection: "Connection", rows: int) -> dict[str, dict[str, float]]:
    """Measures the milliseconds of index builds and of VACUUM, in total and for the slowest
    partition."""
    parts = [f"parted.search_embeddings_{part}" for part in range(PARTITIONS)]
    await connection.execute("SET maintenance_work_mem = '512MB'")
    whole = await timed(connection, HNSW.format(table="plain.search_embeddings"))
    builds = [await timed(connection, HNSW.format(table=part)) for part in parts]
    times = {
        "build HNSW, all": {"plain": whole, "parted": sum(builds)},
        "build HNSW, the largest one": {"plain": whole, "parted": max(builds)},
    }
    for side in SIDES:
        await connection.execute(CHURN.format(side=side, rows=rows), timeout=TIMEOUT_SECONDS)
    whole = await timed(connection, "VACUUM plain.items")
    vacuums = [await timed(connection, f"VACUUM parted.items_{part}") for part in range(PARTITIONS)]
    times["vacuum, all"] = {"plain": whole, "parted": sum(vacuums)}
    times["vacuum, the largest one"] = {"plain": whole, "parted": max(vacuums)}
    return times


async def measure(url: str, rows: int) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("SET synchronous_commit = off")  # the disk is the same for both
    await create(connection)
    found = dict(await load(connection, rows))
    asked = await ask(connection)
    found |= {name: {s: median(asked[name][s]) for s in SIDES} for name in asked}
    found |= await maintain(connection, rows)
    print(f"| {rows:,} rows of {OWNERS:,} owners | plain, ms | partitioned, ms | ratio |")
    print("|---|---|---|---|")
    for name, times in found.items():
        plain, parted = (times[side] for side in SIDES)
        print(f"| {name} | {plain:,.2f} | {parted:,.2f} | {parted / plain:.2f} |")
    sizes = [await connection.fetchval(SIZE, side) / 1e6 for side in SIDES]
    print(f"| size of items and documents | {sizes[0]:,.0f} MB | {sizes[1]:,.0f} MB ", end="")
    print(f"| {sizes[1] / sizes[0]:.2f} |")
    await connection.close()


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with migrated_database() as settings:
        assert settings.database_url
        asyncio.run(measure(settings.database_url, rows))


if __name__ == "__main__":
    main()
