"""What a request costs as data grows: owners of 10² items and of many more, in one table, beside
thousands of other owners. Writes growth.svg beside itself.

python -m tests.benchmarks.growth [LARGEST]
"""

import asyncio
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import asyncpg
from httpx import AsyncClient

from app.main import create_app
from features.search.indexing import fold_changes
from shared.database import database_of
from shared.settings import Settings
from shared.testing import connect, sign_in
from tests.benchmarks.common import migrated_database

ROUNDS = 60
OTHERS = 10_000
ITEMS_OF_OTHERS = 10
FILL = """
INSERT INTO items (id, owner_id, title, description, price)
SELECT gen_random_uuid(), $1, (ARRAY['Enamel', 'Glass', 'Steel', 'Oak', 'Linen'])[1 + n % 5] || ' '
    || (ARRAY['mug', 'bowl', 'lamp', 'chair', 'towel', 'clock', 'vase'])[1 + n % 7] || ' no. ' || n,
    'Series ' || n % 100, 1 + n % 500
FROM generate_series(1, $2::int) AS n
"""
FILL_OTHERS = """
WITH others AS (
    INSERT INTO users (id, email)
    SELECT gen_random_uuid(), 'other-' || n || '@example.com' FROM generate_series(1, $1::int) AS n
    RETURNING id
)
INSERT INTO items (id, owner_id, title, price)
SELECT gen_random_uuid(), id, 'Glass bowl no. ' || n, n
FROM others, generate_series(1, $2::int) AS n
"""
ENDPOINTS = ("get", "list", "list, total=false", "create", "search, lexical")
COLOURS = ("#1b6ca8", "#d1495b", "#edae49", "#2e8b57", "#6a4c93")
PLOT = Path(__file__).with_name("growth.svg")

Times = Mapping[str, Sequence[float]]


async def ask(client: AsyncClient, endpoint: str, item: str) -> float:
    """Milliseconds that one request took."""
    started = time.perf_counter()
    match endpoint:
        case "get":
            answer = await client.get(f"/items/{item}")
        case "list":
            answer = await client.get("/items", params={"sort": "-price"})
        case "list, total=false":
            answer = await client.get("/items", params={"sort": "-price", "total": "false"})
        case "create":
            answer = await client.post("/items", json={"title": "Enamel mug", "price": 1})
        case _:
            answer = await client.get("/search", params={"q": "steel clock 77", "mode": "lexical"})
    assert answer.is_success, answer.text
    return (time.perf_counter() - started) * 1000


async def measure(settings: Settings, sizes: Sequence[int]) -> Times:
    """The median of each endpoint for each size; sizes take turns."""
    app = create_app(settings, run_tasks=False)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        clients, items = [], []
        connection = await asyncpg.connect(settings.database_url)
        await connection.execute(FILL_OTHERS, OTHERS, ITEMS_OF_OTHERS, timeout=3600)
        for size in sizes:
            client = await stack.enter_async_context(connect(app, timeout=600))
            await sign_in(client, f"owner-of-{size}@example.com")
            owner = (await client.get("/users/me")).json()["id"]
            await connection.execute(FILL, owner, size, timeout=3600)
            clients.append(client)
            items.append((await client.get("/items?limit=1")).json()["items"][0]["id"])
        while await fold_changes(database_of(app)):
            pass
        await connection.execute("VACUUM ANALYZE", timeout=3600)
        times: dict[str, list[float]] = {}
        for endpoint in ENDPOINTS:
            each: list[list[float]] = [[] for _ in sizes]
            for _ in range(ROUNDS + 5):
                for number, (client, item) in enumerate(zip(clients, items, strict=True)):
                    each[number].append(await ask(client, endpoint, item))
            times[endpoint] = [median(found[5:]) for found in each]
        await connection.close()
    return times


def plot(sizes: Sequence[int], times: Times) -> str:
    """Both axes are logarithmic, so that what grows with the data would rise."""
    left, top, width, height = 60, 20, 480, 260
    highest = math.ceil(math.log10(max(max(values) for values in times.values())))
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def x(size: float) -> float:
        return left + width * (math.log10(size) - first) / (last - first)

    def y(milliseconds: float) -> float:
        return top + height * (1 - math.log10(milliseconds) / highest)

    drawn = [
        f'<text x="{left - 8}" y="{y(10**n) + 4:.0f}" text-anchor="end">{10**n} ms</text>'
        f'<path d="M{left} {y(10**n):.0f}h{width}" stroke="#ccc"/>'
        for n in range(highest + 1)
    ]
    drawn += [
        f'<text x="{x(size):.0f}" y="{top + height + 20}" text-anchor="middle">{size:,}</text>'
        for size in sizes
    ]
    for number, (endpoint, values) in enumerate(times.items()):
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(sizes, values, strict=True))
        colour, line = COLOURS[number], top + 20 + 20 * number
        drawn.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{left + width + 12}" y="{line}" fill="{colour}">{endpoint}</text>'
        )
    drawn.append(
        f'<text x="{left + width / 2:.0f}" y="{top + height + 44}" text-anchor="middle">'
        "items of the owner</text>"
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 340" '
        f'font-family="sans-serif" font-size="13">{"".join(drawn)}</svg>\n'
    )


def main() -> None:
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    sizes = [10**n for n in range(2, round(math.log10(largest)) + 1)]
    with migrated_database() as settings:
        times = asyncio.run(measure(settings, sizes))
    print("| ms, median | " + " | ".join(f"{size:,} items" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for endpoint, values in times.items():
        print(f"| {endpoint} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    PLOT.write_text(plot(sizes, times))


if __name__ == "__main__":
    main()
