"""Streams of server-sent events end with their credential."""

import asyncio
import time

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.middleware.websockets import CREDENTIAL_SECONDS, check_credential
from app.routing import is_event_stream
from shared.problems import Problem, Unauthorized


class EventStreamMiddleware:
    """Ends a stream of events once its credential has ended, instead of sending the next event.

    The client connects again, and gets the 401.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        task, ended, checked_at = asyncio.current_task(), False, time.monotonic()
        assert task

        async def send_if_valid(message: Message) -> None:
            nonlocal ended, checked_at
            now = time.monotonic()
            if now > checked_at + CREDENTIAL_SECONDS and is_event_stream(scope):
                checked_at = now
                try:
                    await check_credential(HTTPConnection(scope))
                except Unauthorized:
                    ended = task.cancel()
                    await asyncio.get_running_loop().create_future()  # until it is cancelled
                except Problem:  # the next check may tell
                    pass
            await send(message)

        try:
            await self.app(scope, receive, send_if_valid)
        except asyncio.CancelledError:
            if not ended or task.uncancel():
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})
