"""The cache fails open while Redis is down, frozen or full, and runs nothing that others write."""

import asyncio
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis as Connection

from shared import cache as module
from shared.cache import open_cache
from tests.app_helpers import capture_log
from tests.kit import Redis


def failures() -> float:
    return REGISTRY.get_sample_value("tessera_redis_failures_total") or 0


@pytest.mark.parametrize("fault", ["gone", "frozen", "full"])
async def test_a_failing_redis_is_skipped_for_some_seconds(
    redis: Redis, fault: str, app: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REDIS_RETRY_SECONDS", 600.0)
    monkeypatch.setattr(module, "REDIS_TIMEOUT_SECONDS", 2.0)  # long enough for a busy machine
    cache, lines, before = open_cache(redis.url), capture_log(), failures()
    await cache.set("known", b"1", expire=60)
    await inflict(redis, fault)
    await cache.set("new", b"2", expire=60)
    assert await asyncio.gather(*(cache.get("new") for _ in range(20))) == [None] * 20
    assert failures() == before + 1
    assert lines.getvalue().count("redis_failed") == 1
    assert "Traceback" not in lines.getvalue()

    await relieve(redis, fault)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + module.REDIS_RETRY_SECONDS)
    await cache.set("new", b"2", expire=60)
    assert await cache.get("new") == b"2"
    await cache.close()


async def inflict(redis: Redis, fault: str) -> None:
    if fault == "gone":
        redis.kill()
    elif fault == "frozen":
        redis.freeze()
    else:
        await configure(redis, maxmemory="1")


async def relieve(redis: Redis, fault: str) -> None:
    if fault == "gone":
        redis.start()
    elif fault == "frozen":
        redis.thaw()
    else:
        await configure(redis, maxmemory="0")


async def configure(redis: Redis, **options: str) -> None:
    async with Connection.from_url(redis.url) as connection:
        for name, value in options.items():
            await connection.config_set(name, value)


class Bomb:
    """An object whose pickle creates a directory when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("prefix", [b"", b"bytes:", b"Bomb:", b"list:"])
async def test_nothing_in_redis_is_ever_run(redis: Redis, prefix: bytes, tmp_path: Path) -> None:
    bomb = tmp_path / "exploded"
    await put(redis, "known", prefix + pickle.dumps(Bomb(bomb)))
    cache = open_cache(redis.url)
    found = await cache.get("known")
    assert isinstance(found, bytes) if prefix == b"bytes:" else found is None
    assert not bomb.exists()
    await cache.close()


@pytest.mark.parametrize("value", [b"", b"True", b"\xff", b"bytes", b"9" * 5_000])
async def test_what_cannot_be_decoded_is_a_miss(redis: Redis, value: bytes) -> None:
    await put(redis, "known", value)
    cache = open_cache(redis.url)
    assert await cache.get("known") is None
    await cache.set("new", b"2", expire=60)
    assert await cache.get("new") == b"2", "the circuit breaker is open"
    await cache.close()


async def put(redis: Redis, key: str, value: bytes) -> None:
    async with Connection.from_url(redis.url) as connection:
        await connection.set(key, value)
