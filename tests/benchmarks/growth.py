"""Measures the time of a request as data grows: for owners of more and more items in one table, and
for an owner of few items among more and more other owners. Writes growth.svg next to this file.

python -m tests.benchmarks.growth [ITEMS [OWNERS]]
"""

import asyncio
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import TypeAlias
from urllib.parse import urlsplit

import asyncpg
from fastapi import FastAPI
from httpx import AsyncClient

from app.main import create_app
from app.task_runner import run_until_idle
from shared.settings import Settings
from tests.benchmarks.common import migrated_database, save
from tests.kit import connect, sign_in

ROUNDS = 60
OTHERS = 10_000
ITEMS_OF_OTHERS = 10
ITEMS_AMONG_OTHERS = 100
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
BEFORE_SEARCHES = ("search_sweep", "search_statistics")  # for rows inserted past the application
ENDPOINTS = ("get", "list", "list, total=false", "create", "search, lexical")
COLOURS = ("#1b6ca8", "#d1495b", "#edae49", "#2e8b57", "#6a4c93")
PLOT = Path(__file__).with_name("growth.svg")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Times: TypeAlias = Mapping[str, Sequence[float]]
"""Milliseconds by endpoint, one value for each size."""


async def ask(client: AsyncClient, endpoint: str, item: str) -> float:
    """Sends one request and returns its milliseconds."""
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


async def settle(app: FastAPI, connection: Connection) -> None:
    for task in app.state.tasks:
        if task.name in BEFORE_SEARCHES:
            await run_until_idle(app, task)
    await connection.execute("VACUUM ANALYZE", timeout=3600)


async def newcomer(
    app: FastAPI, connection: Connection, size: int, stack: AsyncExitStack
) -> tuple[AsyncClient, str]:
    """Creates an owner with `size` items; returns a client and the id of one item."""
    client = await stack.enter_async_context(connect(app, timeout=600))
    await sign_in(app, client, f"owner-of-{size}@example.com")
    owner = (await client.get("/users/me")).json()["id"]
    await connection.execute(FILL, owner, size, timeout=3600)
    return client, (await client.get("/items?limit=1")).json()["items"][0]["id"]


async def by_items(settings: Settings, sizes: Sequence[int]) -> Times:
    """Measures owners of different numbers of items in one table."""
    app = create_app(settings, run_tasks=False)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        connection = await asyncpg.connect(settings.database_url)
        stack.push_async_callback(connection.close)
        await connection.execute(FILL_OTHERS, OTHERS, ITEMS_OF_OTHERS, timeout=3600)
        asked = [await newcomer(app, connection, size, stack) for size in sizes]
        await settle(app, connection)
        return await in_turns(asked)


async def by_owners(settings: Settings, counts: Sequence[int]) -> Times:
    """Measures an owner of few items among different numbers of owners; each number has its own
    database."""
    assert settings.database_url
    async with AsyncExitStack() as stack:
        asked = []
        for count in counts:
            url = await copied(settings.database_url, f"among_{count}")
            app = create_app(settings.model_copy(update={"database_url": url}), run_tasks=False)
            await stack.enter_async_context(app.router.lifespan_context(app))
            connection = await asyncpg.connect(url)
            stack.push_async_callback(connection.close)
            await connection.execute(FILL_OTHERS, count, ITEMS_OF_OTHERS, timeout=3600)
            asked.append(await newcomer(app, connection, ITEMS_AMONG_OTHERS, stack))
            await settle(app, connection)
        return await in_turns(asked)


async def copied(url: str, name: str) -> str:
    """Copies a database that has no connections, and returns the URL of the copy."""
    parts = urlsplit(url)
    admin = await asyncpg.connect(parts._replace(path="/postgres").geturl())
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {parts.path[1:]}")
    await admin.close()
    return parts._replace(path=f"/{name}").geturl()


async def in_turns(asked: Sequence[tuple[AsyncClient, str]]) -> Times:
    """Returns the median of each endpoint for each client; the clients take turns."""
    times: dict[str, list[float]] = {}
    for endpoint in ENDPOINTS:
        each: list[list[float]] = [[] for _ in asked]
        for _ in range(ROUNDS + 5):
            for found, (client, item) in zip(each, asked, strict=True):
                found.append(await ask(client, endpoint, item))
        times[endpoint] = [median(found[5:]) for found in each]
    return times


def panel(left: int, title: str, sizes: Sequence[int], times: Times) -> str:
    """Draws one chart as SVG. Both axes are logarithmic: a time that grows with the data is a
    rising line."""
    top, width, height, highest = 20, 300, 260, 3
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
    for colour, values in zip(COLOURS, times.values(), strict=True):
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(sizes, values, strict=True))
        drawn.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    drawn.append(
        f'<text x="{left + width / 2:.0f}" y="{top + height + 44}" text-anchor="middle">'
        f"{title}</text>"
    )
    return "".join(drawn)


def plot(panels: Sequence[tuple[str, Sequence[int], Times]]) -> str:
    drawn = [panel(60 + 380 * n, *given) for n, given in enumerate(panels)]
    drawn += [
        f'<text x="{70 + 145 * n}" y="360" fill="{colour}">{endpoint}</text>'
        for n, (colour, endpoint) in enumerate(zip(COLOURS, ENDPOINTS, strict=True))
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 0 800 370" '
        f'font-family="sans-serif" font-size="13">{"".join(drawn)}</svg>\n'
    )


def show(what: str, sizes: Sequence[int], times: Times) -> None:
    print("\n| ms, median | " + " | ".join(f"{size:,} {what}" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for endpoint, values in times.items():
        print(
            f"| {endpoint} | " + " | ".join(f"{value:.1f}" for value in values) + " |", flush=True
        )


def main(most_items: int = 100_000, most_owners: int = 100_000) -> None:
    sizes = [10**n for n in range(2, round(math.log10(most_items)) + 1)]
    counts = [10**n for n in range(1, round(math.log10(most_owners)) + 1)]
    with migrated_database() as settings:
        among = asyncio.run(by_owners(settings, counts))
        show("owners", counts, among)
        own = asyncio.run(by_items(settings, sizes))
        show("items", sizes, own)
    save("growth", {"items": [sizes, own], "owners": [counts, among]})
    panels = [
        ("items of the owner", sizes, own),
        ("other owners, of ten items each", counts, among),
    ]
    PLOT.write_text(plot(panels))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
