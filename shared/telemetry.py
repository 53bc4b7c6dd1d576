"""What leaves the process for those who watch it: errors to Sentry, traces by OTLP.

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
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
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
FLUSH_MILLISECONDS = 2_000  # for the last traces, when the process stops
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
SAID_ELSEWHERE = frozenset({"event", "exc_info", "level", "timestamp"})

tracer = trace.get_tracer("tessera")


def configure_sentry(settings: Settings, release: str) -> None:
    """Sends what is logged as an error, and nothing else: a 4xx is an answer, not an error."""
    if settings.sentry_dsn is None:
        return
    sentry_sdk.init(
        dsn=settings.sentry_dsn,
        environment=settings.env,
        release=f"tessera@{release}",
        send_default_pii=False,
        max_request_body_size="never",
        include_local_variables=False,  # where passwords are, under any name
        before_send=_join,
        auto_enabling_integrations=False,  # they would import what is only installed
        integrations=[StarletteIntegration(), FastApiIntegration()],
        disabled_integrations=[LoggingIntegration()],  # `report_error` knows more
    )


def report_error(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor of structlog: what is logged as an error or worse becomes a Sentry event."""
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
    """Joins an event to the request in the log and in the answer; takes out what may be secret."""
    known = structlog.contextvars.get_contextvars()
    if "request_id" in known:
        event.setdefault("tags", {})["request_id"] = known["request_id"]
    if "user_id" in known:
        event["user"] = {"id": known["user_id"]}
    request: dict[str, Any] = event.get("request", {})
    request.pop("query_string", None)  # codes of single sign-on, and what people search for
    return event


def traces() -> bool:
    """Whether anybody wants traces."""
    return any(os.environ.get(name) for name in ENDPOINTS)


def tracing() -> TelemetryConfig:
    """What FastAPI does for OpenTelemetry: it exports traces if anybody wants them."""
    return {
        "tracing": traces(),
        "operation_spans": False,
        "metrics": False,  # Prometheus asks for them
        "logs": False,  # they go to stderr, with the id of their trace
        "auto_configure": False,  # it would leave out the workers, which serve no ASGI
        "exclude": lambda scope: scope["path"] in PROBES,
    }


@asynccontextmanager
async def tracing_calls() -> AsyncIterator[None]:
    """Sends traces, if anybody wants them; queries and calls of other services are parts."""
    if not traces():
        yield
        return
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
    """Joins the trace of a request to its id."""
    trace.get_current_span().set_attribute("request.id", request_id)


def add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor of structlog: joins a line of the log to its trace."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
        event["span_id"] = trace.format_span_id(span.span_id)
    return event
