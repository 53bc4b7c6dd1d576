"""Headers that tell a browser to take nothing but data, and caches to share no private answer."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
)
NO_STORE = (b"cache-control", b"private, no-store")
NO_CACHE = (b"cache-control", b"private, no-cache")
EVENT_STREAM = (b"cache-control", b"no-cache")
"""What FastAPI sets for a stream of events, and what does not say that it is private."""

RESPONSE_STARTS = {"http.response.start", "websocket.http.response.start"}  # a refused handshake


class SecurityHeadersMiddleware:
    """Adds the security headers that a response does not set itself.

    A response is private unless its route says otherwise: HTTP keeps caches from sharing the answer
    to an `Authorization` header, and to no other credential (RFC 9111, section 3.5). One with an
    entity tag may be kept by its client, and is validated each time. A public route that is to be
    cached sets its own `Cache-Control`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in RESPONSE_STARTS:
                headers = message["headers"]
                given = dict(headers)
                added = [header for header in SECURITY_HEADERS if header[0] not in given]
                if b"cache-control" not in given or EVENT_STREAM in headers:
                    headers = [header for header in headers if header != EVENT_STREAM]
                    added.append(NO_CACHE if b"etag" in given else NO_STORE)
                message["headers"] = [*headers, *added]
            await send(message)

        await self.app(scope, receive, send_with_headers)
