"""ASGI middleware: what happens around every request, a file for each (app/main.py orders them)."""

from app.middleware.access_log import AccessLogMiddleware
from app.middleware.deadline import DeadlineMiddleware
from app.middleware.event_streams import EventStreamMiddleware
from app.middleware.load_shedding import LoadSheddingMiddleware
from app.middleware.read_your_writes import ReadYourWritesMiddleware
from app.middleware.request_id import RequestIdMiddleware
from app.middleware.security_headers import SecurityHeadersMiddleware
from app.middleware.server_errors import ServerErrorMiddleware
from app.middleware.untrusted_proxies import UntrustedProxyMiddleware
from app.middleware.websockets import WebSocketMiddleware

__all__ = [
    "AccessLogMiddleware",
    "DeadlineMiddleware",
    "EventStreamMiddleware",
    "LoadSheddingMiddleware",
    "ReadYourWritesMiddleware",
    "RequestIdMiddleware",
    "SecurityHeadersMiddleware",
    "ServerErrorMiddleware",
    "UntrustedProxyMiddleware",
    "WebSocketMiddleware",
]
