"""What has ended: known in every process within a second, without a query per request.

Deleting a session or an account writes its id to `revocations`, in the same transaction and by
a trigger, whatever deletes it. Each process reads what is new there several times a second,
and at once when a NOTIFY says so. What it knows is as old as the start of its last reading:
once that is more than `FRESH_SECONDS` ago, for whatever reason, each request asks the database.
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
from shared.database import CONNECT_ERRORS, Database, past_pooler

CHANNEL = "access"
SWEEP_SECONDS = 0.25
READ_TIMEOUT_SECONDS = 2.0
FRESH_SECONDS = 0.8

# Rows of transactions that were still running when the last snapshot was taken come later,
# with lower numbers: so each reading begins at that snapshot's horizon (pg_snapshot_xmin).
NEWS = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
       ARRAY(SELECT id FROM revocations WHERE transaction >= $1) AS revoked,
       ARRAY(SELECT id FROM signing_keys ORDER BY id) AS keys
"""

log = structlog.get_logger(__name__)

OnKeys = Callable[[Sequence[str]], Awaitable[None]]


@dataclass
class Revocations:
    """The ids that this process knows to have ended, each as long as a token may name it."""

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
        """Whether what is known may be relied on."""
        return time.monotonic() - self._read_at < FRESH_SECONDS

    def __contains__(self, ended: UUID | None) -> bool:
        return ended in self._ended

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Keeps up with the database until the block ends."""
        self._following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stops to keep up: from now on, nothing is known."""
        if self._following:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        self._read_at = float("-inf")

    async def _follow(self) -> None:
        """For ever; connects again whenever that is needed."""
        while True:
            try:
                async with past_pooler(self.database) as connection:
                    await connection.add_listener(CHANNEL, lambda *_: self._news.set())
                    # It may be another database now, or one that was set back: read all of it.
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
        """Reads now what has been committed until now, if the database can be read."""
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
