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

from features.users.access_tokens.jwt import LEEWAY_SECONDS
from shared.db import Database
from shared.db.errors import CONNECT_ERRORS
from shared.db.pool import expiry
from shared.tasks import supervise

ACCESS_CHANNEL = "access"
POLL_SECONDS = 0.25
JOINED_POLL_SECONDS = 0.1
POLL_TIMEOUT_SECONDS = 2.0
FRESH_SECONDS = 0.8

# A transaction that was running during the last poll may commit later, with a transaction id lower
# than those already read. So each poll starts at pg_snapshot_xmin of the last poll's snapshot: the
# oldest transaction id that was still running.
NEW_REVOCATIONS = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS horizon,
       ARRAY(SELECT id FROM revocations WHERE transaction >= $1) AS revoked,
       ARRAY(SELECT id FROM signing_keys ORDER BY id) AS keys
"""

log = structlog.get_logger(__name__)

OnKeyIds = Callable[["Connection[Any]", Sequence[str]], Awaitable[None]]


@dataclass
class RevocationList:
    """The revoked ids that this process knows.

    Each is held for as long as a valid token may name it. After each poll, `on_key_ids` gets its
    connection, and the ids of the signing keys.
    """

    database: Database
    lifetime: timedelta
    on_key_ids: OnKeyIds
    _last_read: dict[UUID, float] = field(default_factory=dict)
    _horizon: int = 0
    _polled_at: float = float("-inf")
    _connection: "Connection[Any] | None" = None
    _poller: asyncio.Task[None] | None = None
    _poll_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _join_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _notified: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def fresh(self) -> bool:
        """Whether the last poll is recent enough to rely on."""
        return time.monotonic() - self._polled_at < FRESH_SECONDS

    def __contains__(self, revoked_id: UUID | None) -> bool:
        return revoked_id in self._last_read

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        """Polls the database in a background task until the block ends."""
        self._poller = asyncio.create_task(supervise("revocation_list", self._poll_for_ever))
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stops polling. From then on `fresh` is False."""
        if self._poller:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller
        self._polled_at = float("-inf")

    async def _poll_for_ever(self) -> None:
        """Polls again and again; reconnects after a failure."""
        while True:
            try:
                async with self.database.direct() as connection:
                    await connection.add_listener(ACCESS_CHANNEL, lambda *_: self._notified.set())
                    # This may be another database, or a restored one: read the whole table.
                    self._connection, self._horizon = connection, 0
                    expires_at = expiry()
                    while time.monotonic() < expires_at:
                        self._notified.clear()
                        await self._poll(connection)
                        with suppress(TimeoutError):
                            async with asyncio.timeout(POLL_SECONDS):
                                await self._notified.wait()
            except CONNECT_ERRORS as error:
                log.warning("revocations_not_read", error=repr(error))
            finally:
                self._connection = None
            await asyncio.sleep(POLL_SECONDS)

    async def sync(self) -> None:
        """Polls now, if the database can be reached."""
        if self._connection:
            with suppress(*CONNECT_ERRORS):
                await self._poll(self._connection)

    async def join_poll(self) -> None:
        """Returns after a poll that began after this call, if the database can be reached. All
        callers share one poll in `JOINED_POLL_SECONDS`, however many they are."""
        asked_at = time.monotonic()
        async with self._join_lock:
            pause = self._polled_at + JOINED_POLL_SECONDS - asked_at
            if self._polled_at < asked_at and pause > 0:
                await asyncio.sleep(pause)
            if self._polled_at < asked_at:
                await self.sync()

    async def _poll(self, connection: "Connection[Any]") -> None:
        async with self._poll_lock:
            started = time.monotonic()
            found = await connection.fetchrow(
                NEW_REVOCATIONS, self._horizon, timeout=POLL_TIMEOUT_SECONDS
            )
            assert found is not None
            self._drop_expired(started)
            self._last_read.update(dict.fromkeys(found["revoked"], started))
            self._horizon, self._polled_at = found["horizon"], started
            await self.on_key_ids(connection, found["keys"])

    def _drop_expired(self, now: float) -> None:
        oldest = now - self.lifetime.total_seconds() - 2 * LEEWAY_SECONDS
        while self._last_read and (first := next(iter(self._last_read.items())))[1] < oldest:
            del self._last_read[first[0]]
