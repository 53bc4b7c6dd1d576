"""Requests that are made to meet in the middle."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from httpx import Response

LOCK_USER = "SELECT 1 FROM users FOR NO KEY UPDATE"
WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


class Race:
    """Requests that are begun one after the other, while a transaction holds what they need."""

    def __init__(self, observer: "asyncpg.Connection[Any]") -> None:
        self._observer = observer
        self._begun: list[asyncio.Task[Response]] = []

    async def begin(self, request: Coroutine[Any, Any, Response]) -> None:
        """Returns once the request waits for a lock behind the others, or is answered."""
        begun = asyncio.create_task(request)
        self._begun.append(begun)
        async with asyncio.timeout(10):
            while not begun.done() and await self._observer.fetchval(WAITING) < self._pending():
                await asyncio.wait([begun], timeout=0.01)

    def _pending(self) -> int:
        return sum(not request.done() for request in self._begun)

    async def answers(self) -> list[int]:
        return [answer.status_code for answer in await asyncio.gather(*self._begun)]


@asynccontextmanager
async def holding(database_url: str, *statements: str) -> AsyncIterator[None]:
    """A transaction that is committed after the block."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            for statement in statements:
                await connection.execute(statement)
            yield
    finally:
        await connection.close()
