"""Rate limits, counted in Redis where it is set, so that all processes share them, else here.

While Redis does not answer, each process counts for itself.
The headers of a 429 are those of draft-ietf-httpapi-ratelimit-headers.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from shared.cache import REDIS_RETRY_SECONDS, REDIS_TIMEOUT_SECONDS
from shared.circuit_breaker import CircuitBreaker
from shared.metrics import RATE_LIMITED, REDIS_FAILURES
from shared.problems import TooManyRequests

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Limit:
    """A number of requests in a period, counted separately from other limits, by its name."""

    name: str
    rate: RateLimitItem

    @property
    def policy(self) -> str:
        return f'"{self.name}";q={self.rate.amount};w={self.rate.get_expiry()}'


def new_limit(name: str, rate: str) -> Limit:
    """Parses a limit such as `10/minute`."""
    return Limit(name, parse(rate))


class Limiter:
    """Counts requests against limits. Without `enabled`, it counts nothing and all pass."""

    def __init__(self, redis_url: str | None, *, enabled: bool) -> None:
        self._enabled = enabled
        self._local = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._redis = SlidingWindowCounterRateLimiter(_storage(redis_url)) if redis_url else None
        self._circuit = CircuitBreaker(REDIS_RETRY_SECONDS)

    async def hit(self, limit: Limit, *who: str) -> None:
        """Counts one request of the client that `who` identifies.

        Raises:
            TooManyRequests: the limit is reached; `Retry-After` has the seconds to wait.
        """
        if not self._enabled:
            return
        if self._redis and self._circuit.allow():
            with self._record_outcome():
                await _hit(self._redis, limit, who)
                return
        await _hit(self._local, limit, who)

    async def reset(self, limit: Limit, *who: str) -> None:
        """Resets the count of a limit."""
        await self._local.clear(limit.rate, limit.name, *who)
        if self._redis and self._circuit.allow():
            with self._record_outcome():
                await self._redis.clear(limit.rate, limit.name, *who)

    @contextmanager
    def _record_outcome(self) -> Iterator[None]:
        try:
            yield
        except (StorageError, ValueError) as error:  # ValueError: a count that is no number
            REDIS_FAILURES.inc()
            if self._circuit.record_failure():
                log.warning("limits_not_shared", error=str(error))
        except TooManyRequests:
            self._circuit.record_success()
            raise
        else:
            self._circuit.record_success()


async def _hit(
    counter: SlidingWindowCounterRateLimiter, limit: Limit, who: tuple[str, ...]
) -> None:
    if await counter.hit(limit.rate, limit.name, *who):
        return
    reset, _ = await counter.get_window_stats(limit.rate, limit.name, *who)
    wait = max(1, math.ceil(reset - time.time()))
    RATE_LIMITED.labels(limit.name).inc()
    log.warning("rate_limited", limit=limit.name)
    raise TooManyRequests(
        f"Too many requests; please try again in {wait} s",
        headers={
            "Retry-After": str(wait),
            "RateLimit-Policy": limit.policy,
            "RateLimit": f'"{limit.name}";r=0;t={wait}',
        },
    )


def _storage(url: str) -> Storage:
    return RedisStorage(
        url.replace("unix://", "redis+unix://"),
        implementation="redispy",
        wrap_exceptions=True,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
    )
