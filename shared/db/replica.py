"""Decides when a read uses the primary although a replica is set.

It does so for clients that have just written, as the replica may lag behind, and while the replica
cannot be reached.
"""

import hashlib
import time

import structlog
from fastapi import Request
from prometheus_client import Counter

from shared.cache import open_cache
from shared.web.client_address import client_address

PAUSE_SECONDS = 5.0
FALLBACKS = Counter(
    "tessera_replica_fallbacks_total", "Reads that went to the primary as the replica was away"
)

log = structlog.get_logger(__name__)


class Presence:
    """The replica's circuit breaker: after a failure, one read every `PAUSE_SECONDS` tries it."""

    def __init__(self) -> None:
        self._away = False
        self._again = 0.0

    def worth_a_try(self) -> bool:
        if self._away and time.monotonic() < self._again:
            FALLBACKS.inc()
            return False
        self._again = time.monotonic() + PAUSE_SECONDS
        return True

    def missed(self, error: Exception) -> None:
        FALLBACKS.inc()
        if not self._away:
            log.warning("replica_away", error=repr(error))
        self._away = True

    def met(self) -> None:
        if self._away:
            log.info("replica_back")
        self._away = False


class RecentWriters:
    """Read-your-writes: remembers for `seconds` which clients have written.

    It remembers them in this process, and in Redis, where it is set, for the other processes. A
    writer is recorded by its credential, or without one by its address; a read looks for both. So
    a client that has just signed up or in reads from the primary with its first token.
    """

    def __init__(self, redis_url: str | None, seconds: float) -> None:
        self.seconds = seconds
        self._caches = [open_cache(url) for url in dict.fromkeys((None, redis_url))]

    async def add(self, request: Request) -> None:
        writer = _credential(request) or client_address(request)
        for cache in self._caches:
            await cache.set(_key(writer), True, expire=self.seconds)

    async def include(self, request: Request) -> bool:
        for name in filter(None, (_credential(request), client_address(request))):
            for cache in self._caches:
                if await cache.get(_key(name)):
                    return True
        return False

    async def close(self) -> None:
        for cache in self._caches:
            await cache.close()


def _credential(request: Request) -> str | None:
    return request.headers.get("authorization") or request.headers.get("x-api-key")


def _key(name: str) -> str:
    return f"wrote:{hashlib.sha256(name.encode()).hexdigest()}"
