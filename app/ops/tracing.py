"""Traces over OTLP, off until the standard `OTEL_EXPORTER_OTLP_ENDPOINT` is set."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from structlog.typing import EventDict, WrappedLogger

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

FLUSH_MILLISECONDS = 2_000  # to export the last traces when the process stops

URL_ATTRIBUTES = ("url.full", "http.url", "http.target")
REDACTED = "REDACTED"  # as FastAPI says where it leaves out a parameter

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


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


class RemoveQueries(SpanProcessor):
    """Removes the query of each URL from a span: what people search for, codes of single sign-on.

    Instrumentations set these attributes when they start a span. None can be deleted from it.
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        attributes = span.attributes or {}
        if "url.query" in attributes:
            span.set_attribute("url.query", REDACTED)
        for name in URL_ATTRIBUTES:
            if name in attributes:
                span.set_attribute(name, str(attributes[name]).partition("?")[0])


@asynccontextmanager
async def export_traces() -> AsyncIterator[None]:
    """Exports traces if an OTLP endpoint is set, with spans of queries and outgoing HTTP calls."""
    if not traces():
        yield
        return
    # Takes 0.1 s to import, and most processes send no traces.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(RemoveQueries())
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
