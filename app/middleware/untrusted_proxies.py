"""A warning if a proxy reports its clients' addresses and is not believed."""

from collections.abc import Awaitable

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

FORWARDED = frozenset({b"x-forwarded-for", b"forwarded"})
ADVICE = (
    "if it is your proxy, list it in APP_TRUSTED_PROXIES, and let it send X-Forwarded-For: until"
    " then all its clients have its address, and share all limits by address"
)

log = structlog.get_logger("request")


class UntrustedProxyMiddleware:
    """Logs the first request of a process that brings addresses from a peer that is not trusted.

    Only the first: any client can send the header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.has_warned = False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if not self.has_warned and scope["type"] != "lifespan":
            client = scope.get("client")
            # The client that a trusted proxy reports has the port 0 (ProxyHeadersMiddleware).
            if not (client and client[1] == 0):
                self._warn_if_forwarded(scope, client[0] if client else "unknown")
        return self.app(scope, receive, send)

    def _warn_if_forwarded(self, scope: Scope, address: str) -> None:
        if any(name in FORWARDED for name, _ in scope["headers"]):
            self.has_warned = True
            log.warning("proxy_not_trusted", address=address, advice=ADVICE)
