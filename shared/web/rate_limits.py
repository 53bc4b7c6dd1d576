"""Rate limits, counted in Redis where it is set, so that all processes share them, else here.

While Redis does not answer, each process counts for itself.
The headers of a 429 are those of draft-ietf-httpapi-ratelimit-headers.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from shared.cache import REDIS_RETRY_SECONDS, REDIS_TIMEOUT_SECONDS
from shared.circuit_breaker import CircuitBreaker
from shared.metrics import RATE_LIMITED, REDIS_FAILURES
from shared.problems import TooManyRequests

MAX_KEYS = 100_000  # that a process counts for: about 30 MB
KEYS_LOOKED_AT = 8  # when one is added

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Limit:
    """A number of requests in a period, counted separately from other limits, by its name."""

    name: str
    rate: RateLimitItem

    @property
    def policy(self) -> str:
        return f'"{self.name}";q={self.rate.amount};w={self.rate.get_expiry()}'

    def times(self, factor: int) -> "Limit":
        """Returns the limit of so many times the requests in the same period."""
        return Limit(self.name, type(self.rate)(self.rate.amount * factor, self.rate.multiples))


def new_limit(name: str, rate: str) -> Limit:
    """Parses a limit such as `10/minute`."""
    return Limit(name, parse(rate))


@dataclass(slots=True)
class _Count:
    number: int
    expires_at: float


class BoundedStorage(MemoryStorage):
    """Counts in this process, for up to `MAX_KEYS` keys, in the same time for any number.

    For each new key a few others are looked at in turn, and those that have expired deleted. If
    none has and it is full, the one with the lowest count is deleted: so a client that adds many
    keys deletes such keys, not the count of an account whose password is being guessed. The
    storage of `limits` looks at all keys at each request.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, _Count] = {}

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        count = self._find(key)
        if count is None:
            self._make_room()
            count = self._counts[key] = _Count(0, time.time() + expiry)
        count.number += amount
        return count.number

    async def decr(self, key: str, amount: int = 1) -> int:
        count = self._find(key)
        if count is None:
            return 0
        count.number = max(0, count.number - amount)
        return count.number

    async def get(self, key: str) -> int:
        count = self._find(key)
        return count.number if count else 0

    async def clear(self, key: str) -> None:
        self._counts.pop(key, None)

    def _find(self, key: str) -> _Count | None:
        count = self._counts.get(key)
        return count if count and count.expires_at > time.time() else None

    def _make_room(self) -> None:
        now, is_full = time.time(), len(self._counts) >= MAX_KEYS
        kept = []
        for key in list(islice(self._counts, KEYS_LOOKED_AT)):
            count = self._counts.pop(key)
            if count.expires_at > now:
                kept.append((count.number, key, count))
        if is_full and len(kept) == KEYS_LOOKED_AT:
            kept.remove(min(kept, key=lambda each: each[0]))
        self._counts.update((key, count) for _, key, count in kept)  # to the end of the turn


class Limiter:
    """Counts requests against limits. Without `enabled`, it counts nothing and all pass."""

    def __init__(self, redis_url: str | None, *, enabled: bool) -> None:
        self._enabled = enabled
        self._local = SlidingWindowCounterRateLimiter(BoundedStorage())
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
        except (StorageError, ValueError) as error:  # ValueError: a count that is not a number
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
