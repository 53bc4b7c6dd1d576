"""The number of requests that a process works on at a time, and each holder's share of them."""

from contextlib import suppress
from typing import TypeAlias

import structlog
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ops.tracing import PROBES
from app.problem_details import problem
from app.routing import is_event_stream
from shared.auth import Principal
from shared.problems import Problem
from shared.slots import Slots, current_holder, current_network
from shared.web.client_address import site_of

MAX_PARTS = 10  # a holder may have one in so many of all streams of events
MAX_KNOWN = 4_096

Credentials: TypeAlias = tuple[str | None, str | None]


class LoadSheddingMiddleware:
    """Answers 503 at once to more than `concurrency` requests at a time, so that the others stay
    fast, and 429 to more than the share of one holder. Probes are exempt.

    A request counts for its network until it is authenticated, then for its account. If its
    credentials were valid when they were last used, it counts for their account at once: to refuse
    it before it is routed takes a third of the time. A stream of events is a request until it
    begins; then there may be `concurrency` more of these.
    """

    def __init__(self, app: ASGIApp, concurrency: int) -> None:
        self.app = app
        self.requests = Slots("concurrency", concurrency)
        self.streams = Slots("event_streams", concurrency, most=max(1, concurrency // MAX_PARTS))
        self._known: dict[Credentials, str] = {}  # with the account of each

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        credentials = _credentials_of(request)
        network = site_of(request)
        holder = self._known.get(credentials, network)
        try:
            slot = self.requests.take(holder)
        except Problem as refused:
            if holder is not network:
                structlog.contextvars.bind_contextvars(user_id=holder)
            await problem(request, refused)(scope, receive, send)
            return
        before = current_holder.set(holder)
        current_network.set(network)
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
            self._remember(credentials, getattr(request.state, "principal", None))

    def _remember(self, credentials: Credentials, principal: Principal | None) -> None:
        """Remembers whose valid credentials these are; forgets those that are not, or no longer."""
        if principal is None:
            self._known.pop(credentials, None)
        elif credentials not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[credentials] = str(principal.user_id)


def _credentials_of(request: Request) -> Credentials:
    """Returns both headers: a proxy may add the same `Authorization` to the keys of all clients."""
    return request.headers.get("authorization"), request.headers.get("x-api-key")
