"""What a request costs, by what no other load can change: how many functions are called, beside the
least that FastAPI calls for one. A dependency more, or a middleware, is about 0.4 of that least."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from tests.benchmarks.layers import call, least

REQUESTS = 10


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """How many functions are called within the block, those in C included."""
    counts = [0]

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        counts[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(None)


async def calls_of(app: FastAPI, path: str, token: str) -> int:
    """The least of several requests: what is made ready once, or collected as garbage, is not
    the request's."""
    found = []
    for _ in range(REQUESTS):
        with counted_calls() as counts:
            await call(app, path, token)
        found.append(counts[0])
    return min(found)


@pytest.mark.parametrize(
    ("path", "most"),
    [("/items/{id}", 7.4), ("/items", 10.2), ("/search?q=mug&mode=lexical", 10.6)],
)
async def test_calls_of_functions(
    app: FastAPI, client: AsyncClient, path: str, most: float
) -> None:
    made = await client.post("/items", json={"title": "Enamel mug", "price": 12.5})
    token = client.headers["Authorization"].removeprefix("Bearer ")
    ours = await calls_of(app, path.replace("{id}", made.json()["id"]), token)
    assert ours <= most * await calls_of(least, "/", token)
