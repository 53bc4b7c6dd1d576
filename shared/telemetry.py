"""Error reports to Sentry, and traces over OTLP.

Both are off until `APP_SENTRY_DSN` or the standard `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sentry_sdk
import structlog
from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from sentry_sdk.types import Event, Hint
from structlog.typing import EventDict, WrappedLogger

from shared.settings import Settings

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_MILLISECONDS = 2_000  # to export the last traces when the process stops
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
SAID_ELSEWHERE = frozenset({"event", "exc_info", "level", "timestamp"})

tracer = trace.get_tracer("tessera")


def configure_sentry(settings: Settings, release: str) -> None:
    """Sends events that are logged as errors to Sentry, and nothing else: a 4xx is not an error."""
    if settings.sentry_dsn is None:
        return
    sentry_sdk.init(
        dsn=settings.sentry_dsn,
        environment=settings.env,
        release=f"tessera@{release}",
        send_default_pii=False,
        max_request_body_size="never",
        include_local_variables=False,  # passwords may be in them, under any name
        before_send=_join,
        auto_enabling_integrations=False,  # they import each package that is installed
        integrations=[StarletteIntegration(), FastApiIntegration()],
        disabled_integrations=[LoggingIntegration()],  # `report_error` sends more context
    )


def report_error(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: sends events of level error or higher to Sentry."""
    if logging.getLevelNamesMapping()[event["level"].upper()] >= logging.ERROR:
        with sentry_sdk.new_scope() as scope:
            said = {key: event[key] for key in event if key not in SAID_ELSEWHERE}
            scope.set_context("log", said)
            given = event.get("exc_info")
            error = sys.exc_info() if given is True else given
            if error and error != (None, None, None):
                scope.capture_exception(error)
            else:
                scope.capture_message(str(event["event"]), event["level"])
    return event


def _join(event: Event, _hint: Hint) -> Event:
    """Adds the ids of the request and the user to a Sentry event; removes the query string."""
    known = structlog.contextvars.get_contextvars()
    if "request_id" in known:
        event.setdefault("tags", {})["request_id"] = known["request_id"]
    if "user_id" in known:
        event["user"] = {"id": known["user_id"]}
    request: dict[str, Any] = event.get("request", {})
    request.pop("query_string", None)  # it has single sign-on codes and search terms
    return event


def traces() -> bool:
    """Returns whether an OTLP endpoint is set."""
    return any(os.environ.get(name) for name in ENDPOINTS)


def tracing() -> TelemetryConfig:
    """Returns FastAPI's OpenTelemetry options: traces only, and only if an OTLP endpoint is set."""
    return {
        "tracing": traces(),
        "operation_spans": False,
        "metrics": False,  # Prometheus scrapes them
        "logs": False,  # they go to stderr, with the id of their trace
        "auto_configure": False,  # it would not include the workers, which serve no ASGI
        "exclude": lambda scope: scope["path"] in PROBES,
    }


@asynccontextmanager
async def tracing_calls() -> AsyncIterator[None]:
    """Exports traces if an OTLP endpoint is set, with spans of queries and outgoing HTTP calls."""
    if not traces():
        yield
        return
    # Takes 0.1 s to import, and most processes send no traces.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    AsyncPGInstrumentor().instrument()  # type: ignore[no-untyped-call]
    HTTPXClientInstrumentor().instrument()
    try:
        yield
    finally:
        await asyncio.to_thread(provider.force_flush, FLUSH_MILLISECONDS)


def tag_trace(request_id: str) -> None:
    """Adds the request id to the current span."""
    trace.get_current_span().set_attribute("request.id", request_id)


def add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: adds the ids of the current trace and span to an event."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
        event["span_id"] = trace.format_span_id(span.span_id)
    return event
