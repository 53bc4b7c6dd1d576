"""A cache in Redis where it is set, else in this process, for values that can be recomputed.

Fails open: while Redis does not answer, the cache is empty. After a failure a circuit breaker skips
Redis for 5 seconds, so that later requests do not wait for it.
"""

import time
from typing import Any

import structlog
from cashews import Cache
from cashews.exceptions import CacheBackendInteractionError
from prometheus_client import Counter

ENTRIES = 10_000  # the size of the cache in this process
REDIS_TIMEOUT_SECONDS = 0.25
PAUSE_SECONDS = 5.0
FAILURES = Counter("tessera_redis_failures_total", "Commands that Redis did not carry out")

log = structlog.get_logger(__name__)


def open_cache(redis_url: str | None) -> Cache:
    """Opens a cache with `await get(key)` and `await set(key, value, expire=seconds)`; close it."""
    cache = Cache()
    if redis_url is None:
        cache.setup("mem://", size=ENTRIES)
    else:
        cache.setup(
            redis_url,
            middlewares=(_pausing(),),
            suppress=False,  # with True, cashews logs a traceback for each failed command
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
            wait_for_connection_timeout=REDIS_TIMEOUT_SECONDS,
        )
    return cache


def _pausing() -> Any:
    """Returns a cashews middleware that is a circuit breaker: after a failure it skips Redis."""
    paused_until = 0.0

    async def send(call: Any, _command: object, _backend: object, *given: Any, **named: Any) -> Any:
        nonlocal paused_until
        if time.monotonic() >= paused_until:
            try:
                return await call(*given, **named)
            except CacheBackendInteractionError as error:
                FAILURES.inc()
                if time.monotonic() >= paused_until:  # only the first of concurrent failures
                    log.warning("redis_failed", error=repr(error.__cause__))
                paused_until = time.monotonic() + PAUSE_SECONDS
        return named.get("default")

    return send
