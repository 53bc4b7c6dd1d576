"""When the primary reads although there is a replica: for who has just written, as the replica may
lag behind, and while it cannot be reached."""

import hashlib
import time

import structlog
from fastapi import Request
from prometheus_client import Counter

from shared.cache import open_cache
from shared.limits import client_address

PAUSE_SECONDS = 5.0
FALLBACKS = Counter(
    "tessera_replica_fallbacks_total", "Reads that went to the primary as the replica was away"
)

log = structlog.get_logger(__name__)


class Presence:
    """Whether the replica is there. Once it is not, one read tries it, every `PAUSE_SECONDS`."""

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
    """Remembers for some seconds who has written: in this process, and in Redis, where it is set,
    for all the others. Who sent a credential is known by it, everybody else by address: so that
    whoever signs up, or in, is known to the primary at once."""

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
