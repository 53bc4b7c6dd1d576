"""Workers that are killed in the middle of their work lose nothing."""

import asyncio
import os
import random
import sys
from typing import TypeAlias

import asyncpg
from httpx import AsyncClient

from features.search.tests.conftest import Index
from features.search.tests.test_indexing import CONSISTENT

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

ITEMS = 600
KILLS = 3


async def test_killed_workers_leave_every_item_indexed_once(
    client: AsyncClient, index: Index, database_url: str
) -> None:
    await index()
    lines = "\n".join(
        f'{{"external_id": "{n}", "title": "Kettle number {n}", "price": 5}}' for n in range(ITEMS)
    )
    headers = {"Content-Type": "application/jsonl"}
    assert (await client.post("/items/import", content=lines, headers=headers)).status_code == 200
    connection = await asyncpg.connect(database_url)
    for _ in range(KILLS):
        worker = await _start_worker(database_url)
        await _progress(connection, random.randrange(1, ITEMS // KILLS // 2))
        worker.kill()
        await worker.wait()
    await _until(
        connection,
        "SELECT count(*) = 0 FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL",
    )
    left: int = await connection.fetchval("SELECT count(*) FROM search_queue")
    assert 0 < left < ITEMS
    await index()
    assert await connection.fetchval(CONSISTENT)
    await connection.close()


async def _start_worker(database_url: str) -> asyncio.subprocess.Process:
    environment = os.environ | {
        "APP_ENV": "test",
        "APP_DATABASE_URL": database_url,
        "APP_LOG_LEVEL": "error",
        "APP_EMBEDDING_THREADS": "1",
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", "worker", env=environment
    )


async def _progress(connection: Connection, rows: int) -> None:
    """Returns as soon as so many more rows have been embedded."""
    goal = await connection.fetchval("SELECT count(*) FROM search_embeddings") + rows
    await _until(connection, f"SELECT count(*) >= {goal} FROM search_embeddings")


async def _until(connection: Connection, condition: str) -> None:
    async with asyncio.timeout(60):
        while not await connection.fetchval(condition):  # noqa: ASYNC110  # other processes' doing
            await asyncio.sleep(0.02)
