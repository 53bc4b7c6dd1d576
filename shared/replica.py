"""Read your writes: who has just written reads from the primary, as the replica may lag behind."""

import hashlib

from fastapi import Request

from shared.cache import open_cache
from shared.limits import client_address


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
