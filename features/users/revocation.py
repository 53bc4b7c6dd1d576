"""Revocation list: each process knows it within a second, without a query per request.

A trigger writes the id of each deleted account, session and API key to `revocations`, in the same
transaction, so that a DELETE in raw SQL revokes too. Each process polls that table every 0.25 s,
and at once on NOTIFY. Its copy is as old as the start of its last poll: once that is more than
`FRESH_SECONDS` ago, for any reason, each request with an access token queries the database.
So a lost NOTIFY costs a quarter of a second, and a lost connection costs queries.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from asyncpg import Connection

from features.users.tokens import LEEWAY_SECONDS
from shared.db import Database
from shared.db.errors import CONNECT_ERRORS

CHANNEL = "access"
SWEEP_SECONDS = 0.25
READ_TIMEOUT_SECONDS = 2.0
FRESH_SECONDS = 0.8

# A transaction that was running during the last poll may commit later, with a transaction id lower
# than those already read. So each poll starts at pg_snapshot_xmin of the last poll's snapshot: the
# oldest transaction id that was still running.
NEWS = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
       ARRAY(SELECT id FROM revocations WHERE transaction >= $1) AS revoked,
       ARRAY(SELECT id FROM signing_keys ORDER BY id) AS keys
"""

log = structlog.get_logger(__name__)

OnKeys = Callable[[Sequence[str]], Awaitable[None]]


@dataclass
class Revocations:
    """The revoked ids that this process knows.

    Each is held for as long as a valid token may name it.
    """

    database: Database
    lifetime: timedelta
    on_keys: OnKeys
    _ended: dict[UUID, float] = field(default_factory=dict)
    _horizon: int = 0
    _read_at: float = float("-inf")
    _connection: "Connection[Any] | None" = None
    _following: asyncio.Task[None] | None = None
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def fresh(self) -> bool:
        """Whether the last poll is recent enough to rely on."""
        return time.monotonic() - self._read_at < FRESH_SECONDS

    def __contains__(self, ended: UUID | None) -> bool:
        return ended in self._ended

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Polls the database in a background task until the block ends."""
        self._following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stops polling. From then on `fresh` is False."""
        if self._following:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        self._read_at = float("-inf")

    async def _follow(self) -> None:
        """Polls until cancelled; reconnects after a failure."""
        while True:
            try:
                async with self.database.direct() as connection:
                    await connection.add_listener(CHANNEL, lambda *_: self._news.set())
                    # This may be another database, or a restored one: read the whole table.
                    self._connection, self._horizon = connection, 0
                    while True:
                        self._news.clear()
                        await self._read(connection)
                        with suppress(TimeoutError):
                            async with asyncio.timeout(SWEEP_SECONDS):
                                await self._news.wait()
            except CONNECT_ERRORS as error:
                log.warning("revocations_not_read", error=repr(error))
            except Exception:
                log.exception("revocations_not_read")
            finally:
                self._connection = None
            await asyncio.sleep(SWEEP_SECONDS)

    async def catch_up(self) -> None:
        """Polls now, if the database can be reached."""
        if self._connection:
            with suppress(*CONNECT_ERRORS):
                await self._read(self._connection)

    async def _read(self, connection: "Connection[Any]") -> None:
        async with self._reading:
            started = time.monotonic()
            news = await connection.fetchrow(NEWS, self._horizon, timeout=READ_TIMEOUT_SECONDS)
        assert news is not None
        self._forget(started)
        self._ended.update(dict.fromkeys(news["revoked"], started))
        self._horizon, self._read_at = news["horizon"], started
        await self.on_keys(news["keys"])

    def _forget(self, now: float) -> None:
        oldest = now - self.lifetime.total_seconds() - 2 * LEEWAY_SECONDS
        while self._ended and (first := next(iter(self._ended.items())))[1] < oldest:
            del self._ended[first[0]]
