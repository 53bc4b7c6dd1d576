"""A cache in Redis where it is set, else in this process, for values that can be recomputed.

Fails open: while Redis does not answer, the cache is empty. Values are bytes, and nothing is ever
unpickled. Others may be able to write to Redis, so check a value that you get.
"""

from typing import Any

import structlog
from cashews import Cache
from cashews.exceptions import CacheBackendInteractionError
from cashews.picklers import PicklerType

from shared.circuit_breaker import CircuitBreaker
from shared.metrics import REDIS_FAILURES

MAX_ENTRIES = 10_000  # of the cache in this process
REDIS_TIMEOUT_SECONDS = 0.25
REDIS_RETRY_SECONDS = 5.0

log = structlog.get_logger(__name__)


def open_cache(redis_url: str | None) -> Cache:
    """Opens a cache with `await get(key)` and `await set(key, bytes, expire=seconds)`; close it."""
    cache = Cache()
    if redis_url is None:
        cache.setup("mem://", size=MAX_ENTRIES)
    else:
        cache.setup(
            redis_url,
            middlewares=(_fail_open(CircuitBreaker(REDIS_RETRY_SECONDS)),),
            pickle_type=PicklerType.NULL,  # a pickle runs code when it is read
            suppress=False,  # with True, cashews logs a traceback for each failed command
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
            wait_for_connection_timeout=REDIS_TIMEOUT_SECONDS,
        )
    return cache


def _fail_open(circuit: CircuitBreaker) -> Any:
    """Returns a cashews middleware that skips Redis while the circuit is open."""

    async def send(call: Any, _command: object, _backend: object, *given: Any, **named: Any) -> Any:
        if not circuit.allow():
            return named.get("default")
        try:
            answer = await call(*given, **named)
        except CacheBackendInteractionError as error:
            REDIS_FAILURES.inc()
            if circuit.record_failure():
                log.warning("redis_failed", error=repr(error.__cause__))
            return named.get("default")
        except ValueError:  # cashews cannot decode it, so it is not from here
            REDIS_FAILURES.inc()
            return named.get("default")
        circuit.record_success()
        return answer

    return send
