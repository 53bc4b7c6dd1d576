"""A replica to read from. A read uses the primary instead while the replica cannot be reached, and
for clients that have just written, as the replica may lag behind (read-your-writes)."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from asyncpg import PostgresError
from starlette.requests import HTTPConnection

from shared.cache import open_cache
from shared.circuit_breaker import CircuitBreaker
from shared.db.errors import Unreachable
from shared.db.pool import Connection, ReadPool
from shared.metrics import REPLICA_FALLBACKS

RETRY_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Replica:
    def __init__(self, pool: ReadPool, primary: ReadPool, writers: "ReadYourWrites") -> None:
        self.pool, self.primary, self.writers = pool, primary, writers
        self._circuit = CircuitBreaker(RETRY_SECONDS)

    @asynccontextmanager
    async def connection(
        self, request: HTTPConnection | None, *, snapshot: bool
    ) -> AsyncIterator[Connection]:
        """Lends a connection to the replica, or to the primary; raises as `ReadPool` does."""
        async with AsyncExitStack() as stack:
            connection: Connection | None = None
            if not (request and await self.writers.include(request)):
                connection = await self._try(stack, snapshot=snapshot)
            if connection is None:
                primary = self.primary.connection(snapshot=snapshot)
                connection = await stack.enter_async_context(primary)
            yield connection

    async def _try(self, stack: AsyncExitStack, *, snapshot: bool) -> "Connection | None":
        """Returns a connection to the replica, or None if it cannot be reached."""
        if self._circuit.allow():
            try:
                pooled = self.pool.connection(snapshot=snapshot)
                connection = await stack.enter_async_context(pooled)
            except (Unreachable, PostgresError) as error:
                if self._circuit.record_failure():
                    log.warning("replica_away", error=repr(error))
            else:
                if self._circuit.record_success():
                    log.info("replica_back")
                return connection
        REPLICA_FALLBACKS.inc()
        return None


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
        writer = _credential(request) or _address(request)
        for cache in self._caches:
            await cache.set(_key(writer), b"1", expire=self.seconds)

    async def include(self, request: HTTPConnection) -> bool:
        for name in filter(None, (_credential(request), _address(request))):
            for cache in self._caches:
                if await cache.get(_key(name)):
                    return True
        return False

    async def close(self) -> None:
        for cache in self._caches:
            await cache.close()


def _credential(request: HTTPConnection) -> str | None:
    return request.headers.get("authorization") or request.headers.get("x-api-key")


def _address(request: HTTPConnection) -> str:
    return request.client.host if request.client else "unknown"


def _key(name: str) -> str:
    return f"wrote:{hashlib.sha256(name.encode()).hexdigest()}"
