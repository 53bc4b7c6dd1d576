"""Rate limits are counted in bounded memory without Redis, and while it is frozen."""

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from redis.asyncio import Redis as Connection
from time_machine import TimeMachineFixture

from shared.problems import TooManyRequests
from shared.web import rate_limits
from shared.web.rate_limits import BoundedStorage, Limit, Limiter, new_limit
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


async def test_a_request_is_counted_in_the_same_time_for_any_number_of_keys(
    time_machine: TimeMachineFixture,
) -> None:
    time_machine.move_to(time.time() // 60 * 60)
    limiter, limit = Limiter(None, enabled=True), new_limit("probe", "5/minute")
    few, many = 100, 20_000
    calls = []
    for number in range(many):
        if number in {few, many - 1}:
            calls.append(await _count_calls(limiter, limit, f"another {number}"))
        await limiter.hit(limit, str(number))
    assert calls[1] <= calls[0]


async def _count_calls(limiter: Limiter, limit: Limit, who: str) -> int:
    calls = 0

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        await limiter.hit(limit, who)
        await asyncio.sleep(0)  # a task that this has started counts too
    finally:
        sys.setprofile(None)
    return calls


async def test_who_fills_the_memory_makes_no_limit_of_another_vanish(
    monkeypatch: pytest.MonkeyPatch, time_machine: TimeMachineFixture
) -> None:
    time_machine.move_to(time.time() // 60 * 60)
    monkeypatch.setattr(rate_limits, "MAX_KEYS", 100)
    limiter, limit = Limiter(None, enabled=True), new_limit("probe", "5/minute")
    for _ in range(5):
        await limiter.hit(limit, "ada")
    for number in range(1_000):
        await limiter.hit(limit, f"nobody {number}")
    with pytest.raises(TooManyRequests):
        await limiter.hit(limit, "ada")
    assert len(_counts(limiter)) <= 100


async def test_what_has_expired_takes_no_memory(time_machine: TimeMachineFixture) -> None:
    limiter, limit = Limiter(None, enabled=True), new_limit("probe", "5/minute")
    hourly = new_limit("hourly", "5/hour")
    start = time.time() // 60 * 60
    for minute in range(20):
        time_machine.move_to(start + 60 * minute)
        await limiter.hit(hourly, f"{minute}")
        for number in range(100):
            await limiter.hit(limit, f"{minute} {number}")
    assert len(_counts(limiter)) < 20 + 4 * 100


def _counts(limiter: Limiter) -> Mapping[str, object]:
    storage = limiter._local.storage
    assert isinstance(storage, BoundedStorage)
    return storage._counts
