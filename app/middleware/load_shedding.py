"""The number of requests that a process works on at a time."""

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ops.tracing import PROBES
from app.routing import is_event_stream
from shared.problems import overloaded
from shared.web.problem_details import problem


class LoadSheddingMiddleware:
    """Answers 503 at once to more than `concurrency` requests at a time, so that the others stay
    fast. Probes are exempt.

    A stream of events is a request until it begins; then there may be `concurrency` more of these.
    """

    def __init__(self, app: ASGIApp, concurrency: int) -> None:
        self.app, self.concurrency = app, concurrency
        self.in_flight = self.event_streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        if self.in_flight >= self.concurrency:
            await problem(Request(scope), overloaded("concurrency"))(scope, receive, send)
            return
        self.in_flight += 1
        streams = False

        async def send_and_count(message: Message) -> None:
            nonlocal streams
            begins = message["type"] == "http.response.start" and is_event_stream(scope)
            if begins and self.event_streams < self.concurrency:
                streams = True
                self.in_flight -= 1
                self.event_streams += 1
            await send(message)

        try:
            await self.app(scope, receive, send_and_count)
        finally:
            if streams:
                self.event_streams -= 1
            else:
                self.in_flight -= 1
