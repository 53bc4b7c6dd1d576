"""Holds the embedding models of a process, and embeds queries: cached, at most once at a time, and
not while the model fails."""

import asyncio
from uuid import UUID
from weakref import WeakValueDictionary

from cashews import Cache
from prometheus_client import Histogram

from features.search.embedding.base import (
    Embedder,
    EmbeddingModel,
    EmbeddingRefused,
    EmbeddingUnavailable,
    Vector,
)
from features.search.embedding.cache import cache_key, cache_vector, cached_vector
from features.search.embedding.circuit_breaker import TextCircuitBreaker
from features.search.embedding.local import MINILM, LocalEmbedder
from features.search.embedding.remote import RemoteEmbedder
from features.search.settings import SearchSettings

OPEN_SECONDS = 5.0
QUERIES_PER_OWNER = 8
"""How many queries of an owner the model has at once; more wait here. The local model embeds one
query after the other: what one owner sends delays no other by more than these."""
EMBEDDING_SECONDS = Histogram(
    "tessera_embedding_seconds", "How long the model took for a query that was not cached"
)


class Embedders:
    """Creates and holds an embedder for each model that the settings can reach."""

    def __init__(self, settings: SearchSettings, cache: Cache) -> None:
        self._settings, self._cache = settings, cache
        self._open: dict[EmbeddingModel, Embedder] = {}
        self._in_flight: dict[str, asyncio.Task[Vector]] = {}
        self._slots: WeakValueDictionary[UUID, asyncio.Semaphore] = WeakValueDictionary()
        self._breaker = TextCircuitBreaker(OPEN_SECONDS)

    @property
    def configured(self) -> EmbeddingModel:
        """The model named by the settings."""
        settings = self._settings
        if settings.embedding_provider == "local":
            return MINILM
        assert settings.embedding_model
        assert settings.embedding_dim
        return EmbeddingModel("openai", settings.embedding_model, settings.embedding_dim)

    def get(self, model: EmbeddingModel) -> Embedder | None:
        """Returns the model's embedder, or None if the settings do not say how to reach it."""
        if model not in self._open:
            embedder = self._new(model)
            if embedder is None:
                return None
            self._open[model] = embedder
        return self._open[model]

    async def embed_query(self, owner_id: UUID, model: EmbeddingModel, text: str) -> Vector:
        """Returns the vector of a query. Concurrent calls of an owner for the same text share one
        request.

        Raises:
            EmbeddingUnavailable: the model cannot be reached, or does not embed this text.
        """
        key = cache_key(owner_id, model, text)
        cached = await cached_vector(self._cache, key, model.dimension)
        if cached is not None:
            return cached
        if key not in self._in_flight:
            task = self._in_flight[key] = asyncio.create_task(
                self._embed(owner_id, model, text, key)
            )
            task.add_done_callback(lambda _: self._in_flight.pop(key))
        return await asyncio.shield(self._in_flight[key])

    async def close(self) -> None:
        for embedder in self._open.values():
            await embedder.close()

    async def _embed(self, owner_id: UUID, model: EmbeddingModel, text: str, key: str) -> Vector:
        embedder = self.get(model)
        if embedder is None:
            raise EmbeddingUnavailable(f"The settings do not say how to reach {model.name}")
        slots = self._slots.setdefault(owner_id, asyncio.Semaphore(QUERIES_PER_OWNER))
        async with slots:
            if not self._breaker.allow(owner_id, text):
                raise EmbeddingUnavailable(f"{model.name} did not answer a moment ago")
            try:
                with EMBEDDING_SECONDS.time():
                    vector = await embedder.embed_query(text)
            except EmbeddingRefused as error:
                raise EmbeddingUnavailable(f"{model.name} did not embed the query") from error
            except EmbeddingUnavailable:
                self._breaker.record_failure(owner_id, text)
                raise
        self._breaker.record_success()
        await cache_vector(self._cache, key, vector)
        return vector

    def _new(self, model: EmbeddingModel) -> Embedder | None:
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
