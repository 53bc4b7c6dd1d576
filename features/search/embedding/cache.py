"""Caches the vectors of queries, in Redis where it is set."""

import hashlib

import numpy as np
from cashews import Cache

from features.search.embedding.base import EmbeddingModel, Vector

CACHE_SECONDS = 86_400


def cache_key(model: EmbeddingModel, text: str) -> str:
    text = "\0".join((model.provider, model.name, str(model.dimension), text))
    return f"embedding:{hashlib.sha256(text.encode()).hexdigest()}"


async def cached_vector(cache: Cache, key: str) -> Vector | None:
    cached = await cache.get(key)
    return np.frombuffer(cached, np.float32) if cached else None


async def cache_vector(cache: Cache, key: str, vector: Vector) -> None:
    await cache.set(key, vector.tobytes(), expire=CACHE_SECONDS)
