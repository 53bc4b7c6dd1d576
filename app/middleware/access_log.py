"""A log line and a measurement for every request."""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.ops.metrics import REQUEST_SECONDS
from app.ops.tracing import PROBES

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_CLOSED_REQUEST = 499  # only in the log, as in nginx: the client left first

log = structlog.get_logger("request")


class AccessLogMiddleware:
    """Logs each request, without its query, and measures it for the metrics."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_CLOSED_REQUEST

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                # The log would show an HTTPStatus by its name.
                status = message["status"] = int(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            seconds = time.perf_counter() - started
            _count_request(scope, status, seconds)
            _log_request(scope, status, seconds)


def _count_request(scope: Scope, status: int, seconds: float) -> None:
    """Counts a request. Unknown methods and paths share a label, as their number is unlimited."""
    method = scope["method"] if scope["method"] in METHODS else "other"
    route = getattr(scope.get("route"), "path_format", "none")
    REQUEST_SECONDS.labels(method, route, status).observe(seconds)


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
