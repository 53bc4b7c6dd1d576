"""The time that a request has for its response."""

import asyncio
import math

import structlog
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ops.metrics import REQUESTS_EXPIRED
from app.ops.tracing import PROBES
from app.problem_details import problem
from app.routing import is_event_stream
from shared.db.errors import OUTCOME_UNKNOWN
from shared.db.sessions import request_state
from shared.problems import Unavailable
from shared.web.deadlines import extend_deadline

log = structlog.get_logger("request")


class DeadlineMiddleware:
    """Answers 503 to a request that has no response after `seconds`. As long as bytes flow, each
    chunk of a stream extends that, for at most `stream_seconds` from its first byte, or for ever if
    it is one of events. Probes are exempt."""

    def __init__(self, app: ASGIApp, seconds: float | None, stream_seconds: float) -> None:
        self.app, self.seconds, self.stream_seconds = app, seconds, stream_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        begun, started, latest = False, loop.time(), math.inf

        async def send_and_extend(message: Message) -> None:
            nonlocal begun, latest
            if not begun and not is_event_stream(scope):
                latest = loop.time() + self.stream_seconds
            if not begun or message.get("more_body"):  # the last chunk needs no more time
                extend_deadline(deadline, latest)
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self.seconds) as deadline:
                scope.setdefault("state", {})["deadline"] = deadline
                request_state.set(scope["state"])
                await self.app(scope, receive, send_and_extend)
        except TimeoutError:
            if not deadline.expired():
                raise
            REQUESTS_EXPIRED.inc()
            log.warning("deadline_passed", begun=begun)
            if begun:
                raise
            allowed = round((deadline.when() or started) - started, 1)
            unknown = scope["state"].get("commits")
            advice = OUTCOME_UNKNOWN if unknown else "Please try again"
            late = Unavailable(f"There was no answer within {allowed:g} s. {advice}")
            await problem(Request(scope), late)(scope, receive, send)
