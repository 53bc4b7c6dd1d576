"""What a request costs, by what no other load of the machine can change: how many functions are
called, beside the least that FastAPI calls for one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fastapi import FastAPI, Response
from httpx import AsyncClient
from starlette.types import ASGIApp, Message, Scope

REQUESTS = 10
least = FastAPI()


@least.get("/")
async def nothing() -> Response:
    """As little as FastAPI does for any request."""
    return Response(b'{"id": 1}', media_type="application/json")


async def keep_calls(client: AsyncClient, app: FastAPI, url: str, most: float) -> None:
    """Fails if the client's GET takes more than `most` times the calls of FastAPI alone. A
    dependency more, or a middleware, is about 0.4 of those."""
    token = client.headers["Authorization"].removeprefix("Bearer ")
    taken = await _calls(app, url, token) / await _calls(least, "/", token)
    assert taken <= most, f"GET {url} takes {taken:.1f} times the calls of FastAPI alone"


async def _calls(app: ASGIApp, url: str, token: str) -> int:
    """The least of several requests: what is made ready once, or collected as garbage, is not
    the request's."""
    found = []
    for _ in range(REQUESTS):
        with _counted() as counts:
            await get(app, url, token)
        found.append(counts[0])
    return min(found)


@contextmanager
def _counted() -> Iterator[list[int]]:
    counts = [0]

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        counts[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(None)


async def get(app: ASGIApp, url: str, token: str) -> None:
    """One request, without a server or a client around it."""
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
