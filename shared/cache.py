"""A cache for what can always be made again: in Redis where it is set, else in this process.

A Redis that does not answer is a cache that is empty: nothing fails for it.
"""

from cashews import Cache

ENTRIES = 10_000  # of the cache in this process
REDIS_TIMEOUT_SECONDS = 0.25


def open_cache(redis_url: str | None) -> Cache:
    """A cache with `await get(key)` and `await set(key, value, expire=seconds)`; close it."""
    cache = Cache()
    if redis_url is None:
        cache.setup("mem://", size=ENTRIES)
    else:
        cache.setup(
            redis_url,
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        )
    return cache
