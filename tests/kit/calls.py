"""The cost of a request in function calls, relative to a minimal FastAPI route.

Unlike a time, the number of calls does not depend on the load of the machine.
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fastapi import FastAPI, Response
from httpx import AsyncClient
from starlette.types import ASGIApp, Message, Scope

REQUESTS = 10
minimal_app = FastAPI()


@minimal_app.get("/")
async def minimal_route() -> Response:
    """A minimal route, to compare with: the least that FastAPI does for a request."""
    return Response(b'{"id": 1}', media_type="application/json")


async def assert_max_calls(client: AsyncClient, app: FastAPI, url: str, most: float) -> None:
    """Fails if the client's GET makes more than `most` times the calls of a minimal FastAPI route.

    One more dependency or middleware adds about 0.4. Leave 0.2 above the present ratio.
    """
    token = client.headers["Authorization"].removeprefix("Bearer ")
    ratio = await _calls(app, url, token) / await _calls(minimal_app, "/", token)
    assert ratio <= most, f"GET {url} takes {ratio:.1f} times the calls of FastAPI alone"


async def _calls(app: ASGIApp, url: str, token: str) -> int:
    """Returns the lowest count of several requests.

    Initialisation on first use and garbage collection add calls to some of them.
    """
    calls = []
    for _ in range(REQUESTS):
        with _counted() as counts:
            await get(app, url, token)
        calls.append(counts[0])
    return min(calls)


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Counts the calls of the current task.

    Those of the event loop and of other tasks are the more, the longer a response takes.
    """
    counts, task = [0], asyncio.current_task()

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        if event in ("call", "c_call") and asyncio.current_task() is task:
            counts[0] += 1

    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(None)


async def get(app: ASGIApp, url: str, token: str) -> None:
    """Sends a GET request directly to the ASGI application; fails unless it answers 200."""
    path, _, query = url.partition("?")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
