"""ASGI middleware for every request: id, log line, security headers, unhandled exceptions."""

import asyncio
import re
import time

import structlog
from fastapi import Request
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from app.ops.tracing import PROBES, tag_trace
from app.routing import is_event_stream
from shared.problems import Unavailable, overloaded
from shared.web.deadlines import extend_deadline
from shared.web.problem_details import content_too_large, internal_error, problem

WELL_FORMED_ID = re.compile(rb"[A-Za-z0-9._-]{8,128}")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REQUESTS = Histogram(
    "http_request_duration_seconds",
    "Requests by the template of their route, and how long each took",
    ("method", "route", "status"),
)

TIMED_OUT = Counter("tessera_requests_expired_total", "Requests given up at their deadline")
CLIENT_CLOSED_REQUEST = 499  # only in the log, as in nginx: the client left first

log = structlog.get_logger("request")


class RequestMiddleware:
    """Gives each request an id, logs it, and adds the security headers.

    The id is that of a well-formed `X-Request-ID`, else a new one. It is in the response, in
    every log line and in the body of every error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = CLIENT_CLOSED_REQUEST
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        tag_trace(request_id)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                # The log would show an HTTPStatus by its name.
                status = message["status"] = int(message["status"])
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    *(header for header in SECURITY_HEADERS if header[0] not in given),
                ]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            _count_request(scope, status, seconds)
            _log_request(scope, status, seconds)


class ServerErrorMiddleware:
    """Logs an unhandled exception and answers with a 500 problem, without its details.

    Also turns Starlette's plain-text 413 into a problem.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                if replaced := _is_plain_413(message):
                    await content_too_large(Request(scope))(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self.app(scope, receive, send_problem)
        except ClientDisconnect:
            pass  # the client has gone
        except Exception:
            log.exception("unhandled_error")
            if started:  # too late for another response: the server closes the connection
                raise
            await internal_error(Request(scope))(scope, receive, send)


def _is_plain_413(start: Message) -> bool:
    """Returns whether Starlette itself rejects a Content-Length beyond the limit, in plain text."""
    if start["status"] != 413:
        return False
    return Headers(raw=start["headers"]).get("content-type", "").startswith("text/plain")


def request_id_of(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if WELL_FORMED_ID.fullmatch(given) else uuid7().hex


def _count_request(scope: Scope, status: int, seconds: float) -> None:
    """Counts a request. Unknown methods and paths share a label, as their number is unlimited."""
    method = scope["method"] if scope["method"] in METHODS else "other"
    route = getattr(scope.get("route"), "path_format", "none")
    REQUESTS.labels(method, route, status).observe(seconds)


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    if scope["path"] in PROBES and status < 400:
        return
    route = getattr(scope.get("route"), "path_format", None)
    log.info(
        "request",
        method=scope["method"],
        route=route,
        status=status,
        ms=round(seconds * 1000, 1),
    )


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


class TimeoutMiddleware:
    """Answers 503 to a request that has no response after `seconds`. A stream has no deadline as
    long as bytes flow: each chunk extends it. Probes are exempt."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        begun, started = False, asyncio.get_running_loop().time()

        async def send_and_extend(message: Message) -> None:
            nonlocal begun
            if not begun or message.get("more_body"):  # the last chunk needs no more time
                extend_deadline(deadline)
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self.seconds) as deadline:
                scope.setdefault("state", {})["deadline"] = deadline
                await self.app(scope, receive, send_and_extend)
        except TimeoutError:
            if not deadline.expired():
                raise
            TIMED_OUT.inc()
            log.warning("deadline_passed", begun=begun)
            if begun:
                raise
            allowed = round((deadline.when() or started) - started, 1)
            late = Unavailable(f"There was no answer within {allowed:g} s; please try again")
            await problem(Request(scope), late)(scope, receive, send)
