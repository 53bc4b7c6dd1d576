"""Tools for tests of race conditions."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from httpx import Response

from tests.kit import eventually, within

LOCK_USER = "SELECT 1 FROM users FOR NO KEY UPDATE"
COUNT_LOCK_WAITS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


class Race:
    """Requests that start one after the other and wait for the locks of a transaction."""

    def __init__(self, observer: "asyncpg.Connection[Any]") -> None:
        self._observer = observer
        self._requests: list[asyncio.Task[Response]] = []

    async def start(self, request: Coroutine[Any, Any, Response]) -> None:
        """Starts the request, and returns once it waits for a lock like the earlier ones.

        Raises:
            AssertionError: a request was answered without waiting for a lock.
        """
        self._requests.append(asyncio.create_task(request))
        await eventually(self._all_wait, "a request that waits for a lock", 30)

    async def _all_wait(self) -> bool:
        for request in self._requests:
            if request.done():
                answer = request.result()
                asked = f"{answer.request.method} {answer.request.url.path}"
                told = f"{answer.status_code}, {answer.text}"
                raise AssertionError(f"{asked} waits for no lock: it was answered {told}")
        waiting: int = await self._observer.fetchval(COUNT_LOCK_WAITS)
        return waiting >= len(self._requests)

    async def answers(self) -> list[Response]:
        async with within(30, "the answer of each request"):
            return await asyncio.gather(*self._requests)

    async def statuses(self) -> list[int]:
        return [answer.status_code for answer in await self.answers()]


@asynccontextmanager
async def open_transaction(database_url: str, *statements: str) -> AsyncIterator[None]:
    """Runs the statements in a transaction that commits after the block."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            async with within(30, f"the locks of {statements}"):
                for statement in statements:
                    await connection.execute(statement)
            yield
    finally:
        await connection.close()
