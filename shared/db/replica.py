"""A replica to read from. The primary is read instead while the replica is away, was promoted or
lags too far, and by clients that have just written (read-your-writes)."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import Context
from decimal import Decimal
from hashlib import sha256

import structlog
from asyncpg import PostgresError
from sqlalchemy import Executable
from starlette.requests import HTTPConnection

from shared.cache import open_cache
from shared.db.errors import Unreachable, database_problem
from shared.db.pool import Connection, ReadPool, Row
from shared.db.sessions import NO_VALUES, ReadSession, Values
from shared.metrics import REPLICA_FALLBACKS
from shared.problems import TooManyRequests, Unavailable

CHECK_SECONDS = 0.5
CHECK_TIMEOUT_SECONDS = 1.0
WATCHED_SECONDS = 60.0  # after the last read
SELECT_REPLAYED = """
SELECT pg_is_in_recovery() AS is_replica, pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0') AS bytes
"""
SELECT_WRITTEN = "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')"

log = structlog.get_logger(__name__)


class ReplicaFailed(Unavailable):
    """A statement on the replica failed, and may succeed on the primary."""


class ReplicaReadSession(ReadSession):
    """A read session that sends a statement again, to the primary, where the replica fails."""

    def __init__(
        self, replica: "Replica", request: HTTPConnection | None, timeout: float | None
    ) -> None:
        super().__init__(lambda: replica.connection(request), timeout)
        self._primary = ReadSession(replica.primary.connection, timeout)

    async def fetch(self, statement: Executable, values: Values = NO_VALUES) -> list[Row]:
        try:
            return await super().fetch(statement, values)
        except ReplicaFailed:
            REPLICA_FALLBACKS.inc()
            return await self._primary.fetch(statement, values)


class Replica:
    """Lends connections to the replica, or to the primary.

    While reads come, it checks twice a second that the replica answers, is one, and has replayed
    what the primary had written `database_replica_lag` seconds before. At first it reads from the
    primary, for half a second: until it knows what the replica has to have replayed. `probe` is a
    separate pool of one connection to the replica.
    """

    def __init__(
        self, pool: ReadPool, probe: ReadPool, primary: ReadPool, writers: "ReadYourWrites"
    ) -> None:
        self.pool, self.probe, self.primary, self.writers = pool, probe, primary, writers
        self._usable: bool | None = None  # None: not checked yet
        self._asked_at = 0.0
        self._lent: set[Connection] = set()
        self._written: deque[tuple[float, Decimal]] = deque()  # when, and up to where in the WAL
        self._replayed = Decimal(0)
        self._watcher: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def connection(
        self, request: HTTPConnection | None, *, snapshot: bool = False
    ) -> AsyncIterator[Connection]:
        """Lends a connection to the replica, or to the primary; raises as `ReadPool` does.

        Raises:
            ReplicaFailed: the replica has failed, except in a snapshot.
        """
        connection: Connection | None = None
        try:
            async with AsyncExitStack() as stack:
                if not (request and await self.writers.include(request)):
                    connection = await self._try(stack, snapshot=snapshot)
                if connection is None:
                    primary = self.primary.connection(snapshot=snapshot)
                    yield await stack.enter_async_context(primary)
                else:
                    yield connection
        except (Unavailable, PostgresError) as error:
            if connection is None or snapshot or not _may_succeed_elsewhere(error):
                raise
            raise ReplicaFailed(str(error)) from error
        finally:
            if connection is not None:
                self._lent.discard(connection)

    async def close(self) -> None:
        if self._watcher:
            self._watcher.cancel()
        await self.probe.close()
        await self.writers.close()

    async def _try(self, stack: AsyncExitStack, *, snapshot: bool) -> "Connection | None":
        """Returns a connection to the replica, or None if it cannot be used."""
        self._asked_at = time.monotonic()
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch(), context=Context())  # of no request
        if self._usable:
            try:
                pooled = self.pool.connection(snapshot=snapshot)
                connection = await stack.enter_async_context(pooled)
            except (Unreachable, PostgresError) as error:
                self._give_up(repr(error.__cause__ or error))
            except (TooManyRequests, Unavailable):
                if self._usable:  # it is busy; else, it was given up while this waited
                    raise
            else:
                self._lent.add(connection)
                return connection
        if self._usable is False:
            REPLICA_FALLBACKS.inc()
        return None

    async def _watch(self) -> None:
        """Checks the replica until no read has asked for it for a while."""
        while self._lent or time.monotonic() < self._asked_at + WATCHED_SECONDS:
            if reason := await self._reason_against():
                self._give_up(reason)
            elif not self._usable and self._written and self._replayed >= self._written[0][1]:
                if self._usable is False:
                    log.info("replica_back")
                self._usable = True
            with suppress(TimeoutError, PostgresError, Unavailable):
                async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                    await self._record_written()
            await asyncio.sleep(CHECK_SECONDS)
        self._usable = None
        self._written.clear()

    async def _reason_against(self) -> str | None:
        """Returns why the replica cannot be read from, or None if it can."""
        asking = asyncio.create_task(self._fetch_replayed())
        await asyncio.wait({asking}, timeout=CHECK_TIMEOUT_SECONDS)
        if not asking.done():
            asking.cancel()  # not awaited: to close a connection to a silent server takes a second
            for lent in self._lent:  # its waiting reads go to the primary
                lent.terminate()
            return f"no answer within {CHECK_TIMEOUT_SECONDS:g} s"
        try:
            replayed = asking.result()
        except (PostgresError, Unavailable) as error:
            return repr(error.__cause__ or error)
        assert replayed is not None
        if not replayed.is_replica:
            self.probe.replace_connections()  # for another one of those in the URL
            return "it is not in recovery: it has been promoted"
        before = time.monotonic() - self.writers.seconds
        while len(self._written) > 1 and self._written[1][0] <= before:
            self._written.popleft()
        written_at, written = self._written[0] if self._written else (time.monotonic(), 0)
        self._replayed = replayed.bytes
        if written_at <= before and replayed.bytes < written:
            return f"it lags by more than {self.writers.seconds:g} s"
        return None

    async def _fetch_replayed(self) -> Row | None:
        async with self.probe.connection() as connection:
            return await connection.fetchrow(SELECT_REPLAYED)

    async def _record_written(self) -> None:
        async with self.primary.connection() as connection:
            self._written.append((time.monotonic(), await connection.fetchval(SELECT_WRITTEN)))

    def _give_up(self, reason: str) -> None:
        """Reads from the primary until a replica passes a check."""
        if self._usable is not False:
            log.warning("replica_away", error=reason)
        self._usable = False
        self.pool.replace_connections()


def _may_succeed_elsewhere(error: Unavailable | PostgresError) -> bool:
    """Returns whether the replica was lost, or has cancelled the statement to replay the WAL."""
    if isinstance(error, PostgresError):
        return error.sqlstate != "57014" and isinstance(database_problem(error), Unavailable)
    return isinstance(error.__cause__, Exception)


class ReadYourWrites:
    """Remembers for `seconds` which clients have written.

    It remembers them in this process, and in Redis, where it is set, for the other processes. A
    writer is recorded by its credential, or without one by its address; a read looks for both. So
    a client that has just signed up or in reads from the primary with its first token.
    """

    def __init__(self, redis_url: str | None, seconds: float) -> None:
        self.seconds = seconds
        self._caches = [open_cache(url) for url in dict.fromkeys((None, redis_url))]

    async def add(self, request: HTTPConnection) -> None:
        writer = _keys_of(request)[0]
        for cache in self._caches:
            await cache.set(writer, b"1", expire=self.seconds)

    async def include(self, request: HTTPConnection) -> bool:
        for key in _keys_of(request):
            for cache in self._caches:
                if await cache.get(key):
                    return True
        return False

    async def close(self) -> None:
        for cache in self._caches:
            await cache.close()


def _keys_of(request: HTTPConnection) -> list[str]:
    """Returns the keys of a client: of its credential, if it sends one, and of its address."""
    credential = request.headers.get("authorization") or request.headers.get("x-api-key")
    address = request.client.host if request.client else "unknown"
    return [f"wrote:{sha256(name.encode()).hexdigest()}" for name in (credential, address) if name]
