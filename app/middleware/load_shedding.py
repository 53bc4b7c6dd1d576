"""The number of requests that a process works on at a time."""

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.ops.tracing import PROBES
from shared.problems import overloaded
from shared.web.problem_details import problem


class LoadSheddingMiddleware:
    """Answers 503 at once to more than `concurrency` requests at a time, so that the others stay
    fast. Probes are exempt."""

    def __init__(self, app: ASGIApp, concurrency: int) -> None:
        self.app, self.concurrency = app, concurrency
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        if self.in_flight >= self.concurrency:
            await problem(Request(scope), overloaded("concurrency"))(scope, receive, send)
            return
        self.in_flight += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.in_flight -= 1
