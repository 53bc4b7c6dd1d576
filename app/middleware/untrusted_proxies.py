"""A warning if a proxy reports its clients' addresses and is not believed."""

from collections.abc import Awaitable, Sequence

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

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

    def __init__(self, app: ASGIApp, trusted_proxies: Sequence[str]) -> None:
        self.app = app
        self.has_warned = False
        believing = ProxyHeadersMiddleware(app, list(trusted_proxies))  # type: ignore[arg-type]
        self.trusted_hosts = believing.trusted_hosts

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if not (
            self.has_warned
            or scope["type"] == "lifespan"
            or FORWARDED.isdisjoint(dict(scope["headers"]))
        ):
            self._warn_unless_trusted(scope["client"][0] if scope.get("client") else "unknown")
        return self.app(scope, receive, send)

    def _warn_unless_trusted(self, peer: str) -> None:
        if peer not in self.trusted_hosts:
            self.has_warned = True
            log.warning("proxy_not_trusted", address=peer, advice=ADVICE)
