"""Holds the embedding models of a process, and caches the vectors of queries."""

import asyncio
import hashlib
import time

import numpy as np
from cashews import Cache
from prometheus_client import Histogram

from features.search.embedding.base import (
    Embedder,
    EmbeddingRefused,
    EmbeddingUnavailable,
    Model,
    Vector,
)
from features.search.embedding.local import MINILM, LocalEmbedder
from features.search.embedding.remote import RemoteEmbedder
from features.search.settings import SearchSettings

CACHE_SECONDS = 86_400
PAUSE_SECONDS = 5.0
EMBEDDING = Histogram(
    "tessera_embedding_seconds", "How long the model took for a query that was not cached"
)


class Embedders:
    """Creates and holds an embedder for each model that the settings can reach."""

    def __init__(self, settings: SearchSettings, cache: Cache) -> None:
        self._settings, self._cache = settings, cache
        self._open: dict[Model, Embedder] = {}
        self._under_way: dict[str, asyncio.Task[Vector]] = {}
        self._failed: set[str] = set()
        self._paused_until = 0.0

    @property
    def configured(self) -> Model:
        """The model named by the settings."""
        settings = self._settings
        if settings.embedding_provider == "local":
            return MINILM
        assert settings.embedding_model
        assert settings.embedding_dim
        return Model("openai", settings.embedding_model, settings.embedding_dim)

    def get(self, model: Model) -> Embedder | None:
        """Returns the model's embedder, or None if the settings do not say how to reach it."""
        if model not in self._open:
            embedder = self._new(model)
            if embedder is None:
                return None
            self._open[model] = embedder
        return self._open[model]

    async def embed_query(self, model: Model, text: str) -> Vector:
        """Returns the vector of a query. Concurrent calls for the same text share one request.

        Raises:
            EmbeddingUnavailable: the model cannot be reached, or does not embed this text.
        """
        key = f"embedding:{_digest(model.provider, model.name, str(model.dimension), text)}"
        if cached := await self._cache.get(key):
            return np.frombuffer(cached, np.float32)
        if key not in self._under_way:
            task = self._under_way[key] = asyncio.create_task(self._embed(model, text, key))
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return await asyncio.shield(self._under_way[key])

    async def close(self) -> None:
        for embedder in self._open.values():
            await embedder.close()

    async def _embed(self, model: Model, text: str, key: str) -> Vector:
        embedder = self.get(model)
        if embedder is None:
            raise EmbeddingUnavailable(f"The settings do not say how to reach {model.name}")
        if self._left_alone(key):
            raise EmbeddingUnavailable(f"{model.name} did not answer a moment ago")
        try:
            with EMBEDDING.time():
                vector = await embedder.embed_query(text)
        except EmbeddingRefused as error:
            raise EmbeddingUnavailable(f"{model.name} did not embed the query") from error
        except EmbeddingUnavailable:
            self._failed = {*list(self._failed)[:1], key}
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            raise
        self._failed.clear()
        await self._cache.set(key, vector.tobytes(), expire=CACHE_SECONDS)
        return vector

    def _left_alone(self, key: str) -> bool:
        """Circuit breaker: returns whether to skip the model after a recent failure.

        After one text has failed, only that text is skipped, because the text itself may be the
        cause. After two different texts have failed, all texts are skipped until
        `PAUSE_SECONDS` after the last failure.
        """
        paused = time.monotonic() < self._paused_until
        return paused and (len(self._failed) > 1 or key in self._failed)

    def _new(self, model: Model) -> Embedder | None:
        settings = self._settings
        if model == MINILM:
            return LocalEmbedder(settings.embedding_model_path, settings.embedding_threads)
        if model.provider == "openai" and settings.embedding_url:
            key = settings.embedding_api_key
            secret = key.get_secret_value() if key else None
            return RemoteEmbedder(
                model,
                str(settings.embedding_url),
                secret,
                settings.embedding_timeout,
                settings.embedding_query_timeout,
            )
        return None


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
