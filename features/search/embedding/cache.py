"""Caches the vectors of queries, in Redis where it is set.

Entries are not shared between owners. A shared entry would reveal, by the duration of a search,
that another owner has searched for the same.
"""

import hashlib
from uuid import UUID

import numpy as np
from cashews import Cache

from features.search.embedding.base import EmbeddingModel, Vector

CACHE_SECONDS = 86_400
FLOAT_BYTES = np.dtype(np.float32).itemsize
ROUNDING = 0.001  # of the length of a vector


def cache_key(owner_id: UUID, model: EmbeddingModel, text: str) -> str:
    parts = (str(owner_id), model.provider, model.name, str(model.dimension), text)
    text = "\0".join(parts)
    return f"embedding:{hashlib.sha256(text.encode()).hexdigest()}"


async def cached_vector(cache: Cache, key: str, dimension: int) -> Vector | None:
    """Returns the vector, or None if none is cached: a value that is not a unit vector of the model
    was not written by us."""
    cached = await cache.get(key)
    if not isinstance(cached, bytes) or len(cached) != dimension * FLOAT_BYTES:
        return None
    vector: Vector = np.frombuffer(cached, np.float32)
    return vector if abs(np.linalg.norm(vector.astype(np.float64)) - 1) < ROUNDING else None


async def cache_vector(cache: Cache, key: str, vector: Vector) -> None:
    await cache.set(key, vector.tobytes(), expire=CACHE_SECONDS)
