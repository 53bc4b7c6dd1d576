"""Structured logs: one event a line, for people in development and as JSON in production."""

import logging
import sys
from typing import Any

import orjson
import structlog
from structlog.dev import plain_traceback
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from shared.settings import Settings
from shared.telemetry import add_trace, report_error, traces

REDACTED = "[redacted]"
SECRET_WORDS = ("password", "secret", "token", "authorization", "api_key", "cookie")


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Blanks what is named like a secret: nobody should log one, and nobody will."""
    for key in event:
        if any(word in key.lower() for word in SECRET_WORDS):
            event[key] = REDACTED
    return event


def configure_logging(settings: Settings) -> None:
    """Sends structlog's events and the standard library's records through one pipeline."""
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    if settings.json_logs:
        tracebacks = ExceptionDictTransformer(show_locals=False)  # which may hold secrets
        final: list[Processor] = [ExceptionRenderer(tracebacks), _json_renderer()]
    else:
        final = [structlog.dev.ConsoleRenderer(exception_formatter=plain_traceback)]
    if settings.sentry_dsn:
        final.insert(0, report_error)
    if traces():
        common.append(add_trace)
    level = getattr(logging, settings.log_level.upper())
    structlog.configure(
        processors=[*common, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=common,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.getLogger("uvicorn.access").disabled = True  # each request is logged once, by us
    for chatty in ("alembic", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _json_renderer() -> Processor:
    def dumps(event: Any, default: Any) -> str:
        return orjson.dumps(event, default=default).decode()

    return structlog.processors.JSONRenderer(serializer=dumps)
