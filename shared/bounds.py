"""Load shedding and deadlines: how many requests run at once, and for how long."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import structlog
from fastapi import Depends, Request
from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.database import database_of
from shared.errors import RequestTimeout, Unavailable, busy, problem
from shared.sessions import place_for_stream
from shared.telemetry import PROBES

IDLE_SECONDS = 30.0  # a client may send or accept nothing for this long in a stream
STREAM_SECONDS = 1000.0  # a stream may stall for this long; PostgreSQL ends an import sooner

log = structlog.get_logger(__name__)
EXPIRED = Counter("tessera_requests_expired_total", "Requests given up at their deadline")


class BoundsMiddleware:
    """Load shedding and a deadline for each request, probes excepted.

    More than `concurrency` requests at once get 503 immediately, so that the others stay fast. A
    request without a response after `seconds` gets 503. A stream has no deadline as long as bytes
    flow: each chunk extends it.
    """

    def __init__(self, app: ASGIApp, concurrency: int, seconds: float) -> None:
        self.app, self.concurrency, self.seconds = app, concurrency, seconds
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        if self.under_way >= self.concurrency:
            await problem(Request(scope), busy("concurrency"))(scope, receive, send)
            return
        self.under_way += 1
        try:
            await self._in_time(scope, receive, send)
        finally:
            self.under_way -= 1

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, started = False, asyncio.get_running_loop().time()

        async def send_at_leisure(message: Message) -> None:
            nonlocal begun
            if not begun or message.get("more_body"):  # the last chunk needs no more time
                _move(deadline)
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self.seconds) as deadline:
                scope.setdefault("state", {})["deadline"] = deadline
                await self.app(scope, receive, send_at_leisure)
        except TimeoutError:
            if not deadline.expired():
                raise
            EXPIRED.inc()
            log.warning("deadline_passed", begun=begun)
            if begun:
                raise
            allowed = round((deadline.when() or started) - started, 1)
            late = Unavailable(f"There was no answer within {allowed:g} s; please try again")
            await problem(Request(scope), late)(scope, receive, send)


def _move(deadline: asyncio.Timeout) -> None:
    if not deadline.expired():
        deadline.reschedule(asyncio.get_running_loop().time() + STREAM_SECONDS)


async def _upload(request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
    async with place_for_stream(database_of(request.app).uploads, request):
        yield _while_it_comes(request.stream(), request.state.deadline)


async def _while_it_comes(
    pieces: AsyncIterator[bytes], deadline: asyncio.Timeout
) -> AsyncIterator[bytes]:
    """Yields the chunks of an upload; each read extends the request's deadline.

    Raises:
        RequestTimeout: no chunk arrives within `IDLE_SECONDS`.
    """
    while True:
        _move(deadline)
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RequestTimeout(f"Nothing more came within {IDLE_SECONDS:g} s") from None
        yield piece


Upload = Annotated[AsyncIterator[bytes], Depends(_upload, scope="function")]
"""A request body of any length, as a stream of chunks.

Reading it extends the request's deadline. Run a query before, so that a dead database connection is
noticed as early as in other requests. At most half as many uploads as write connections run at
once; one that stalls gets 408.
"""
