"""Measures the time to embed a whole catalogue, against the bare model; and the time from an item's
201 until a search finds it, while 1,000 items per minute are created.

python -m features.search.tests.benchmarks.search_freshness [SECONDS [ITEMS]]
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from statistics import quantiles
from typing import Any, TypeAlias

import asyncpg
from fastapi import FastAPI
from httpx import AsyncClient

from app.main import create_app
from features.search.indexing.embeddings import ENTRIES_PER_BATCH
from features.search.runtime import runtime_of
from features.search.tests.benchmarks.search_relevance import import_all, read
from shared.settings import Settings
from tests.benchmarks.common import DATA, migrated_database
from tests.kit import connect, sign_in

SECONDS = 60
PER_MINUTE = 1_000
POLL_SECONDS, COUNT_SECONDS = 0.02, 0.5

WAITING = """
SELECT count(*) FROM search_documents AS d LEFT JOIN search_embeddings AS e USING (item_id)
WHERE e.item_id IS NULL
"""
TEXTS = "SELECT title || E'\\n' || coalesce(description, '') FROM items ORDER BY id"
EMBEDDED = "SELECT item_id FROM search_embeddings WHERE item_id = ANY ($1)"

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def fill(
    app: FastAPI, client: AsyncClient, connection: Connection, items: Sequence[dict[str, Any]]
) -> None:
    """Imports a catalogue and waits until the background tasks have embedded it; then embeds the
    same texts by calling the same model directly."""
    started = time.perf_counter()
    await import_all(client, items)
    while await connection.fetchval(WAITING):  # noqa: ASYNC110  # background tasks change the count
        await asyncio.sleep(COUNT_SECONDS)
    rate = len(items) / (time.perf_counter() - started)
    texts = [row[0] for row in await connection.fetch(TEXTS)]
    embedders = runtime_of(app).embedders
    embedder = embedders.get(embedders.configured)
    assert embedder
    started = time.perf_counter()
    for start in range(0, len(texts), ENTRIES_PER_BATCH):
        await embedder.embed_documents(texts[start : start + ENTRIES_PER_BATCH])
    bare = len(texts) / (time.perf_counter() - started)
    print(
        f"import of {len(items):,} documents to fully embedded: {rate:.1f} documents/s, "
        f"the bare model loop: {bare:.1f} documents/s ({rate / bare:.0%})"
    )


async def arrive(
    client: AsyncClient, items: Sequence[dict[str, Any]], count: int, created: dict[str, float]
) -> None:
    """Creates items at a constant rate, records when each was answered, and at once searches for a
    word that only this item contains."""
    start, missed = time.perf_counter(), 0
    for number in range(count):
        await asyncio.sleep(max(0, start + number * 60 / PER_MINUTE - time.perf_counter()))
        item = items[number % len(items)]
        body = {
            "title": f"{item['title'][:180]} freshword{number}",
            "description": (item.get("description") or "")[:10_000] or None,
            "price": 5,
        }
        answer = await client.post("/items", json=body)
        created[answer.json()["id"]] = time.perf_counter()
        query = {"q": f"freshword{number} ", "mode": "lexical"}
        missed += (await client.get("/search", params=query)).json()["total"] == 0
    minutes = (time.perf_counter() - start) / 60
    print(f"{count / minutes:,.0f} items a minute; not found by word at once: {missed} of {count}")


async def watch(
    connection: Connection, created: dict[str, float], seen: dict[str, float], count: int
) -> None:
    """Records when each of the created items has its embedding, and so is found semantically."""
    while len(seen) < count:
        rows = await connection.fetch(EMBEDDED, list(created.keys() - seen.keys()))
        seen.update(dict.fromkeys((str(row[0]) for row in rows), time.perf_counter()))
        await asyncio.sleep(POLL_SECONDS)


async def measure(settings: Settings, seconds: int, items: Sequence[dict[str, Any]]) -> None:
    app = create_app(settings.model_copy(update={"max_body_size": 10**9}))
    connection = await asyncpg.connect(settings.database_url)
    count = PER_MINUTE * seconds // 60
    created: dict[str, float] = {}
    seen: dict[str, float] = {}
    async with app.router.lifespan_context(app), connect(app, timeout=600) as client:
        await sign_in(app, client, "bench@example.com")
        await fill(app, client, connection, items)
        watching = asyncio.create_task(watch(connection, created, seen, count))
        await arrive(client, items, count, created)
        await watching
    await connection.close()
    delays = quantiles([seen[item] - created[item] for item in created], n=100, method="inclusive")
    print(f"found by meaning after: p50 {delays[49]:.2f} s, p95 {delays[94]:.2f} s")


def main() -> None:
    if not DATA.exists():
        print(f"search freshness: no trial data at {DATA}")
        return
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    items = read(DATA / "chorus").items
    if len(sys.argv) > 2:
        items = items[: int(sys.argv[2])]
    with migrated_database() as settings:
        asyncio.run(measure(settings, seconds, items))


if __name__ == "__main__":
    main()
