"""Fixtures of the search tests."""

from collections.abc import Awaitable, Callable

import pytest
from fastapi import FastAPI

from features.search.tasks import embedding_task, statistics_task
from shared.tasks import run_until_idle

Index = Callable[[], Awaitable[None]]


@pytest.fixture
def index(app: FastAPI) -> Index:
    """Runs all background work of search that is due: `await index()`."""

    async def drain_all() -> None:
        await run_until_idle(app, statistics_task)
        await run_until_idle(app, embedding_task)

    return drain_all
