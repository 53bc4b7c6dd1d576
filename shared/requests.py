"""What surrounds every request: its id, its log line, the security headers, the last resort."""

import re
import time
from collections.abc import Mapping

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils.compat import uuid7

from shared.errors import internal_error

WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")
SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
}
QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})

log = structlog.get_logger("request")


class RequestMiddleware:
    """Gives each request an id, and answers and logs what nothing inside has handled.

    The id is taken from `X-Request-ID` where that is well-formed, else made; it is in the
    response, in every log line and in the body of every error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or 499
        except Exception:
            log.exception("unhandled_error")
            if status:  # too late for another answer: the server closes the connection
                raise
            await internal_error(Request(scope))(scope, receive, send_with_headers)
        finally:
            _log_request(scope, status, time.perf_counter() - started)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if WELL_FORMED_ID.fullmatch(given) else uuid7().hex


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    if scope["path"] in QUIET_PATHS and status < 400:
        return
    route = getattr(scope.get("route"), "path", None)
    log.info(
        "request",
        method=scope["method"],
        route=route,
        status=status,
        ms=round(seconds * 1000, 1),
    )
