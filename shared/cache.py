"""A cache for what can always be made again: in Redis where it is set, else in this process.

A Redis that does not answer is a cache that is empty, and is left alone for some seconds:
nothing fails for it, and only the first to notice waits.
"""

import time
from typing import Any

import structlog
from cashews import Cache
from cashews.exceptions import CacheBackendInteractionError
from prometheus_client import Counter

ENTRIES = 10_000  # of the cache in this process
REDIS_TIMEOUT_SECONDS = 0.25
PAUSE_SECONDS = 5.0
FAILURES = Counter("tessera_redis_failures_total", "Commands that Redis did not carry out")

log = structlog.get_logger(__name__)


def open_cache(redis_url: str | None) -> Cache:
    """A cache with `await get(key)` and `await set(key, value, expire=seconds)`; close it."""
    cache = Cache()
    if redis_url is None:
        cache.setup("mem://", size=ENTRIES)
    else:
        cache.setup(
            redis_url,
            middlewares=(_pausing(),),
            suppress=False,  # cashews would log a traceback for each command
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
            wait_for_connection_timeout=REDIS_TIMEOUT_SECONDS,
        )
    return cache


def _pausing() -> Any:
    """A middleware of cashews that sends no command for a while after one has failed."""
    paused_until = 0.0

    async def send(call: Any, _command: object, _backend: object, *given: Any, **named: Any) -> Any:
        nonlocal paused_until
        if time.monotonic() >= paused_until:
            try:
                return await call(*given, **named)
            except CacheBackendInteractionError as error:
                FAILURES.inc()
                if time.monotonic() >= paused_until:  # the first of many that have waited
                    log.warning("redis_failed", error=repr(error.__cause__))
                paused_until = time.monotonic() + PAUSE_SECONDS
        return named.get("default")

    return send
