"""Fixtures of the search tests."""

from collections.abc import Awaitable, Callable

import pytest
from fastapi import FastAPI

from features.search.tasks import embed, fold
from shared.tasks import run_until_idle

Index = Callable[[], Awaitable[None]]


@pytest.fixture
def index(app: FastAPI) -> Index:
    """Runs all background work of search that is due: `await index()`."""

    async def drain_all() -> None:
        await run_until_idle(app, fold)
        await run_until_idle(app, embed)

    return drain_all
