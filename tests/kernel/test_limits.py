"""Rate limits are counted in the process while the shared Redis is frozen."""

import time
from contextlib import suppress

import pytest
from redis.asyncio import Redis as Connection
from time_machine import TimeMachineFixture

from shared.problems import TooManyRequests
from shared.web import rate_limits
from shared.web.rate_limits import Limiter, new_limit
from tests.app_helpers import capture_log
from tests.kernel.test_cache import failures
from tests.kit import Redis

RETRY_SECONDS = 600.0  # longer than the test takes on any machine


async def test_a_frozen_redis_slows_one_request_and_limits_nothing_away(
    redis: Redis,
    app: object,
    monkeypatch: pytest.MonkeyPatch,
    time_machine: TimeMachineFixture,
) -> None:
    time_machine.move_to(time.time() // 60 * 60)  # a window does not end during the test
    monkeypatch.setattr(rate_limits, "REDIS_RETRY_SECONDS", RETRY_SECONDS)
    monkeypatch.setattr(rate_limits, "REDIS_TIMEOUT_SECONDS", 2.0)  # long enough for a busy machine
    limiter, limit = Limiter(redis.url, enabled=True), new_limit("probe", "5/minute")
    await limiter.hit(limit, "ada")
    lines, before = capture_log(), failures()
    redis.freeze()
    await limiter.hit(limit, "ada")
    assert failures() == before + 1

    for _ in range(4):
        await limiter.hit(limit, "ada")
    with pytest.raises(TooManyRequests):
        await limiter.hit(limit, "ada")
    await limiter.reset(limit, "ada")
    await limiter.hit(limit, "ada")
    assert failures() == before + 1, "Redis was asked again, and waited for again"
    assert lines.getvalue().count("limits_not_shared") == 1

    redis.thaw()
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + RETRY_SECONDS)
    another = Limiter(redis.url, enabled=True)
    for _ in range(5):
        await another.hit(limit, "grace")
    with pytest.raises(TooManyRequests):
        await limiter.hit(limit, "grace")


@pytest.mark.parametrize("value", ["a word", "1e400", "9" * 5_000, "-1"])
async def test_a_count_that_others_wrote_fails_no_request(
    redis: Redis, app: object, time_machine: TimeMachineFixture, value: str
) -> None:
    time_machine.move_to(time.time() // 60 * 60)
    limiter, limit = Limiter(redis.url, enabled=True), new_limit("probe", "5/minute")
    await limiter.hit(limit, "ada")
    async with Connection.from_url(redis.url) as connection:
        for key in await connection.keys():
            await connection.set(key, value)
    with suppress(TooManyRequests):
        await limiter.hit(limit, "ada")
    with suppress(TooManyRequests):
        await limiter.hit(limit, "ada")
    await limiter.reset(limit, "ada")
    await limiter.hit(limit, "ada")
