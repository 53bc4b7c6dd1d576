"""How long after its 201 an item is found, while 1,000 items a minute arrive.

python -m tests.benchmarks.search_freshness [SECONDS]
"""

import asyncio
import sys
import time
from statistics import quantiles
from typing import Any

import asyncpg
from httpx import AsyncClient

from app.main import create_app
from shared.settings import Settings
from shared.testing import connect, sign_in
from tests.benchmarks.common import DATA, migrated_database
from tests.benchmarks.search_relevance import read

SECONDS = 60
PER_MINUTE = 1_000
POLL_SECONDS = 0.02


async def arrive(
    client: AsyncClient, items: list[dict[str, Any]], seconds: int
) -> dict[str, float]:
    """Creates items at an even pace, and searches each by its words at once.

    Returns:
        When each was created, by id.
    """
    created: dict[str, float] = {}
    count = PER_MINUTE * seconds // 60
    start, missed = time.perf_counter(), 0
    for number, item in zip(range(count), items, strict=False):
        await asyncio.sleep(max(0, start + number * 60 / PER_MINUTE - time.perf_counter()))
        body = {key: item.get(key) for key in ("title", "description")} | {"price": 5}
        body["title"] = f"{item['title'][:180]} freshword{number}"
        answer = await client.post("/items", json=body)
        created[answer.json()["id"]] = time.perf_counter()
        query = {"q": f"freshword{number} ", "mode": "lexical"}
        missed += (await client.get("/search", params=query)).json()["total"] == 0
    print(
        f"{count} items in {time.perf_counter() - start:.0f} s; not found by word at once: {missed}"
    )
    return created


async def watch(url: str, seen: dict[str, float], count: int) -> None:
    """Notes when each item's embedding is committed."""
    connection = await asyncpg.connect(url)
    while len(seen) < count:
        rows = await connection.fetch(
            "SELECT item_id FROM search_embeddings WHERE NOT item_id = ANY ($1)", list(seen)
        )
        seen.update(dict.fromkeys((str(row[0]) for row in rows), time.perf_counter()))
        await asyncio.sleep(POLL_SECONDS)
    await connection.close()


async def measure(settings: Settings, seconds: int) -> None:
    assert settings.database_url
    items = read(DATA / "chorus").items
    app = create_app(settings)
    seen: dict[str, float] = {}
    async with app.router.lifespan_context(app), connect(app, timeout=60) as client:
        await sign_in(client, "bench@example.com")
        watching = asyncio.create_task(
            watch(settings.database_url, seen, PER_MINUTE * seconds // 60)
        )
        created = await arrive(client, items, seconds)
        await watching
    delays = quantiles([seen[item] - created[item] for item in created], n=100, method="inclusive")
    print(f"found by meaning after: p50 {delays[49]:.2f} s, p95 {delays[94]:.2f} s")


def main() -> None:
    if not DATA.exists():
        print(f"search freshness: no trial data at {DATA}")
        return
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with migrated_database() as settings:
        asyncio.run(measure(settings, seconds))


if __name__ == "__main__":
    main()
