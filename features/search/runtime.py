"""The state of search in a process: the embedding models, and which one is active."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import FastAPI

from features.search.embedding import PROBE_TEXT, Embedders, EmbeddingUnavailable, WrongDimension
from features.search.indexing.models import RegisteredModel, active_model
from features.search.settings import SearchSettings
from shared.cache import open_cache
from shared.db import ReadSession
from shared.settings import ConfigurationError
from shared.state import resource, resource_of, settings_of, state_of

log = structlog.get_logger(__name__)

CHECK_SECONDS = 3.0


@dataclass
class SearchRuntime:
    """Holds the embedders, and caches which model is the active one."""

    embedders: Embedders
    language: str
    active: RegisteredModel | None = None

    async def active_model(
        self, session: ReadSession, stale: RegisteredModel | None = None
    ) -> RegisteredModel:
        """Returns the model whose embeddings are searched.

        Queries the database only if no model is cached, or if the cached one is `stale`: the one
        that the caller found to be no longer active.

        Raises:
            EmbeddingUnavailable: no model is active until the first start has prepared one.
        """
        if self.active in (None, stale):
            self.active = await active_model(session)
        if self.active is None:
            raise EmbeddingUnavailable("The items have not been embedded yet")
        return self.active


@asynccontextmanager
async def open_runtime(
    settings: SearchSettings, redis_url: str | None
) -> AsyncIterator[SearchRuntime]:
    cache = open_cache(redis_url)
    embedders = Embedders(settings, cache)
    try:
        yield SearchRuntime(embedders, settings.search_language)
    finally:
        await embedders.close()
        await cache.close()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[SearchRuntime]:
    settings = settings_of(app, SearchSettings)
    async with open_runtime(settings, state_of(app).settings.redis_url) as runtime:
        await check_model(runtime.embedders)
        yield runtime


async def check_model(embedders: Embedders) -> None:
    """Embeds a probe text with the configured model. Only logs a warning if the model does not
    answer within `CHECK_SECONDS`, so that the process still starts.

    Raises:
        ConfigurationError: the weights are missing, or the dimension differs from the settings.
    """
    embedder = embedders.get(embedders.configured)
    assert embedder
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await embedder.embed_query(PROBE_TEXT)
    except WrongDimension as error:
        raise ConfigurationError(error.detail) from None
    except (EmbeddingUnavailable, TimeoutError) as error:
        log.warning("embedding_unavailable", model=embedder.model.name, reason=str(error))


def runtime_of(app: FastAPI) -> SearchRuntime:
    return resource_of(app, SearchRuntime)


SearchRuntimeDep = Annotated[SearchRuntime, resource(SearchRuntime)]
