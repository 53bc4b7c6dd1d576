"""The number of requests that a process works on at a time, and each holder's share of them."""

from contextlib import suppress

import structlog
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ops.tracing import PROBES
from app.problem_details import problem
from app.routing import is_event_stream
from shared.auth import credential_of
from shared.problems import Problem
from shared.slots import Slots, current_holder, current_network
from shared.web.client_address import site_of

MAX_PARTS = 10  # a holder may have one in so many of all streams of events


class LoadSheddingMiddleware:
    """Answers 503 at once to more than `concurrency` requests at a time, so that the others stay
    fast, and 429 to more than the share of one holder. Probes are exempt.

    A request counts for its network until it is authenticated, then for its account. One that would
    be refused then is refused here, in half of the time, if its account can be told at once. A
    stream of events is a request until it begins; then there may be `concurrency` more of these.
    """

    def __init__(self, app: ASGIApp, concurrency: int) -> None:
        self.app = app
        self.requests = Slots("concurrency", concurrency)
        self.streams = Slots("event_streams", concurrency, most=max(1, concurrency // MAX_PARTS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        holder = site_of(request)
        try:
            if self.requests.are_scarce:
                await self._check_account(request)
            slot = self.requests.take(holder)
        except Problem as refused:
            await problem(request, refused)(scope, receive, send)
            return
        before = current_holder.set(holder)
        current_network.set(holder)
        scope["state"]["slot"] = slot

        async def send_and_count(message: Message) -> None:
            nonlocal slot
            if message["type"] == "http.response.start" and is_event_stream(scope):
                with suppress(Problem):  # it keeps the slot of a request
                    stream = self.streams.take(slot.holder)
                    slot.release()
                    slot = stream
            await send(message)

        try:
            await self.app(scope, receive, send_and_count)
        finally:
            slot.release()
            current_holder.reset(before)

    async def _check_account(self, request: Request) -> None:
        """Raises the `Problem` of an account that holds its share, if it can be told at once."""
        authenticator, credential = request.app.state.authenticator, await credential_of(request)
        if not authenticator or not credential:
            return
        if principal := authenticator.recognize(request.app, credential):
            account = str(principal.user_id)
            try:
                self.requests.check(account)
            except Problem:
                structlog.contextvars.bind_contextvars(user_id=account)
                raise
