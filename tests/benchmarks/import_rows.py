"""Measures rows per second of `POST /items/import` against a bare COPY of the same rows to `items`,
in a transaction that runs the subscribers of items too.

python -m tests.benchmarks.import_rows
"""

import asyncio
import gzip
import json
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
from httpx import AsyncClient

from app.main import create_app
from shared.db.tables import uuid7
from shared.settings import Settings
from tests.benchmarks.bare import publish
from tests.benchmarks.common import DATA, migrated_database, save
from tests.kit import connect, sign_in

ROUNDS = 5
COLUMNS = [
    "id",
    "owner_id",
    "external_id",
    "title",
    "description",
    "price",
    "created_at",
    "updated_at",
]

Row = dict[str, Any]


def catalogue() -> list[Row]:
    with gzip.open(DATA / "chorus" / "items.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


async def over_http(client: AsyncClient, body: bytes, rows: int) -> None:
    headers = {"Content-Type": "application/jsonl", "Content-Encoding": "gzip"}
    report = await client.post("/items/import", content=body, headers=headers, timeout=600)
    assert report.json()["created"] == rows, report.text


async def bare_copy(url: str, owner_id: UUID, rows: list[Row]) -> None:
    now = datetime.now(UTC)
    records = [
        (
            uuid7(),
            owner_id,
            row["id"],
            row["title"],
            row.get("description"),
            Decimal(str(row["price"])),
            now,
            now,
        )
        for row in rows
    ]
    connection = await asyncpg.connect(url)
    async with connection.transaction():
        await connection.copy_records_to_table("items", columns=COLUMNS, records=records)
        await publish(connection, owner_id, [record[0] for record in records])
    await connection.close()


async def seconds(work: Callable[[], Awaitable[None]]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def measure(settings: Settings, rows: list[Row]) -> tuple[list[float], list[float]]:
    """Runs interleaved rounds, each with a new account; returns the seconds of the imports and of
    the bare COPYs."""
    assert settings.database_url
    url, body = settings.database_url, gzip.compress("\n".join(map(json.dumps, rows)).encode())
    imported, copied = [], []
    app = create_app(settings, run_tasks=False)
    async with app.router.lifespan_context(app):
        for _ in range(ROUNDS):
            async with connect(app) as client, connect(app) as other:
                await sign_in(app, client, f"{secrets.token_hex(6)}@example.com")
                await sign_in(app, other, f"{secrets.token_hex(6)}@example.com")
                owner_id = UUID((await other.get("/users/me")).json()["id"])
                imported.append(await seconds(lambda c=client: over_http(c, body, len(rows))))  # type: ignore[misc]  # the default argument binds the client of this round
                copied.append(await seconds(lambda o=owner_id: bare_copy(url, o, rows)))  # type: ignore[misc]
    return imported, copied


def main() -> None:
    if not DATA.exists():
        print(f"import: no trial data at {DATA}")
        return
    rows = catalogue()
    with migrated_database() as settings:
        imported, copied = asyncio.run(measure(settings, rows))
    save("import_rows", {"imported": imported, "copied": copied})
    ours, bare = statistics.median(imported), statistics.median(copied)
    print(f"| {len(rows):,} rows, median of {ROUNDS} | seconds | rows/s | of bare COPY |")
    print("|---|---|---|---|")
    print(f"| bare COPY into items, indexed | {bare:.2f} | {len(rows) / bare:,.0f} | 1.00 |")
    print(
        f"| POST /items/import, gzip | {ours:.2f} | {len(rows) / ours:,.0f} | {bare / ours:.2f} |"
    )


if __name__ == "__main__":
    main()
