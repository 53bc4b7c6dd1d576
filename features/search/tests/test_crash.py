"""No item is lost when a process is killed while it indexes.

Each process is killed twice, or ten times with `make verify args=long`.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import Iterable

import pytest
from httpx import AsyncClient

from features.search.embedding import PROBE_TEXT
from features.search.tests.conftest import Index
from features.search.tests.fake_endpoint import Endpoint
from features.search.tests.test_indexing import IS_CONSISTENT, Database, add, database
from features.search.tests.test_models import endpoint, timeouts
from tests.kit import LONG, eventually, free_port, within

pytestmark = pytest.mark.verify

__all__ = ["database", "endpoint", "timeouts"]

KILLS = 10 if LONG else 2
MAX_ANSWERS = 4  # batches of 64: fewer than are queued
IS_WAITING = "SELECT EXISTS (SELECT FROM search_queue) OR EXISTS (SELECT FROM search_pending)"
IS_IDLE = """
SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
AND pid <> pg_backend_pid() AND xact_start IS NOT NULL)
"""


@pytest.mark.timeout(60 * KILLS)
@pytest.mark.parametrize("command", ["serve", "worker"])
async def test_killed_processes_leave_every_item_indexed_once(
    endpoint: Endpoint,
    client: AsyncClient,
    index: Index,
    database: Database,
    database_url: str,
    command: str,
) -> None:
    await add(client, "Copper kettle")
    await index()
    for _ in range(KILLS):
        await change_items(client, "Kettle", range(320))
        await change_items(client, "Teapot", random.sample(range(320), 64))
        await kill_in_mid_indexing(endpoint, command, database_url)
        await eventually(
            lambda: database.fetchval(IS_IDLE), "the end of the process's transactions", 60
        )
        assert await database.fetchval(IS_WAITING)
    await index()
    assert await database.fetchval(IS_CONSISTENT)


async def change_items(client: AsyncClient, name: str, numbers: Iterable[int]) -> None:
    rows = [
        {"external_id": str(n), "title": f"{name} {random.random()}", "price": 1} for n in numbers
    ]
    headers = {"Content-Type": "application/jsonl"}
    lines = "\n".join(map(json.dumps, rows))
    assert (await client.post("/items/import", content=lines, headers=headers)).is_success


async def kill_in_mid_indexing(endpoint: Endpoint, command: str, database_url: str) -> None:
    """Kills a process after a random number of batches, at a random moment. The endpoint does not
    answer the request for the batch after these."""
    answers = random.randint(0, MAX_ANSWERS)
    begun, killed = asyncio.Event(), asyncio.Event()

    async def answer_some() -> None:
        nonlocal answers
        if endpoint.requests[-1] == [PROBE_TEXT]:  # the check at start
            return
        if answers <= 1:
            begun.set()
        if answers == 0:
            await killed.wait()
        answers -= 1

    endpoint.meanwhile = answer_some
    process = await start(command, database_url)
    try:

        def at_work() -> bool:
            assert process.returncode is None, f"`{command}` ended with {process.returncode}"
            return begun.is_set()

        await eventually(at_work, f"a batch of `{command}`", 60)
        await asyncio.sleep(random.uniform(0, 0.2))  # to hit different steps of its work
    finally:
        endpoint.meanwhile = None
        if process.returncode is None:
            process.kill()
        async with within(30, "the end of the killed process"):
            await process.wait()
        killed.set()


async def start(command: str, database_url: str) -> asyncio.subprocess.Process:
    settings = {
        "APP_ENV": "test",
        "APP_DATABASE_URL": database_url,
        "APP_LOG_LEVEL": "error",
        "PORT": str(free_port()),
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", command, env=os.environ | settings
    )
