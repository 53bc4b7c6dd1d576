"""Values that others write to Redis run no code in the API."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import AsyncClient
from prometheus_client import REGISTRY
from redis.asyncio import Redis as Connection

from features.search.tests.conftest import Index
from features.search.tests.test_indexing import add
from features.search.tests.test_search import find
from shared.settings import Settings
from tests.kit import Redis


@pytest.fixture
def settings(settings: Settings, redis: Redis) -> Settings:
    return settings.model_copy(update={"redis_url": redis.url, "rate_limiting": True})


class Bomb:
    """An object whose pickle creates a directory when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def embedded() -> float:
    return REGISTRY.get_sample_value("tessera_embedding_seconds_count") or 0


async def test_a_search_is_answered_whatever_others_write_to_redis(
    client: AsyncClient, redis: Redis, index: Index, tmp_path: Path
) -> None:
    await add(client, "Copper kettle", "Iron pan")
    await index()
    bomb = tmp_path / "exploded"
    expected = await find(client, "kettle")
    zeros = np.zeros(384, np.float32)
    for value in (
        pickle.dumps(Bomb(bomb)),
        b"bytes:" + pickle.dumps(Bomb(bomb)),
        b"bytes:" + zeros.tobytes(),
        b"bytes:" + (zeros + np.nan).tobytes(),
        b"bytes:" + (zeros + 1e30).astype(np.float32).tobytes(),
        b"bytes:" + np.ones(1, np.float32).tobytes(),
        b"17",
        b"9" * 5_000,
    ):
        before = embedded()
        await overwrite(redis, value)
        assert await find(client, "kettle") == expected
        assert embedded() == before + 1, "a value of others is a miss"
        assert await find(client, "kettle") == expected
        assert embedded() == before + 1, "the value has not been replaced"
    assert not bomb.exists()


async def overwrite(redis: Redis, value: bytes) -> None:
    async with Connection.from_url(redis.url) as connection:
        keys = await connection.keys("embedding:*")
        assert keys
        for key in keys:
            await connection.set(key, value)
