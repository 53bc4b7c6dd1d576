"""Caches the vectors of queries, in Redis where it is set.

Each owner has entries of their own. An entry that others share would tell them, by the time that a
search takes, what somebody has searched for.
"""

import hashlib
from uuid import UUID

import numpy as np
from cashews import Cache

from features.search.embedding.base import EmbeddingModel, Vector

CACHE_SECONDS = 86_400


def cache_key(owner_id: UUID, model: EmbeddingModel, text: str) -> str:
    parts = (str(owner_id), model.provider, model.name, str(model.dimension), text)
    text = "\0".join(parts)
    return f"embedding:{hashlib.sha256(text.encode()).hexdigest()}"


async def cached_vector(cache: Cache, key: str) -> Vector | None:
    cached = await cache.get(key)
    return np.frombuffer(cached, np.float32) if cached else None


async def cache_vector(cache: Cache, key: str, vector: Vector) -> None:
    await cache.set(key, vector.tobytes(), expire=CACHE_SECONDS)
