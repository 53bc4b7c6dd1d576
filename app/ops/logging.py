"""Structured logs, one event a line: readable text in development, JSON in production."""

import logging
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TextIO

import orjson
import structlog
from asyncpg import PostgresError
from structlog.dev import plain_traceback
from structlog.processors import ExceptionRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from app.ops.sentry import report_error
from app.ops.tracing import add_trace, traces
from shared.settings import Settings

REDACTED = "[redacted]"
SECRET_WORDS = ("password", "secret", "token", "authorization", "api_key", "cookie")


@lru_cache
def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in SECRET_WORDS)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: replaces values whose names look like secrets, as a safeguard."""
    for key in event:
        if _is_secret(key):
            event[key] = REDACTED
    return event


class StructlogHandler(logging.StreamHandler[TextIO]):
    """The handler that writes the records of the standard library and the events of structlog.

    It formats records as any handler does. It is also structlog's logger, and writes events
    directly: to make a record of each would nearly triple the cost of a line.

    An error while writing a line never reaches the caller; it is reported on stderr if possible.
    """

    def __init__(self, prepare: Sequence[Processor], render: Sequence[Processor]) -> None:
        super().__init__(sys.stderr)
        foreign = [ProcessorFormatter.remove_processors_meta, *prepare, *render]
        self.setFormatter(ProcessorFormatter(processors=foreign))
        self.render = render

    def write(self, /, **event: Any) -> None:
        """Renders and writes an event that the processors have prepared."""
        self.acquire()
        try:
            line: Any = event
            for processor in self.render:
                line = processor(self, event["level"], line)
            self.stream.write(line + self.terminator)
            self.stream.flush()
        except Exception:
            self.handleError(logging.makeLogRecord({"msg": event}))
        finally:
            self.release()

    debug = info = warning = error = critical = write


def configure_logging(settings: Settings) -> None:
    """Sends structlog's events and the standard library's records through one pipeline."""
    prepare: list[Processor] = [
        structlog.contextvars.merge_contextvars,  # the request id (app/middleware/request_id.py)
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    if settings.json_logs:
        tracebacks = ExceptionDictTransformer(show_locals=False)  # locals may hold secrets
        render: list[Processor] = [ExceptionRenderer(tracebacks), _json_renderer()]
    else:
        render = [structlog.dev.ConsoleRenderer(exception_formatter=_traceback_with_sql)]
    if settings.sentry_dsn:
        render.insert(0, report_error)
    if traces():
        prepare.append(add_trace)
    level = getattr(logging, settings.log_level.upper())
    handler = StructlogHandler(prepare, render)
    structlog.configure(
        processors=prepare,
        logger_factory=lambda *_: handler,
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.getLogger("uvicorn.access").disabled = True  # `AccessLogMiddleware` logs each request
    for chatty in ("alembic", "httpx", "httpx2", "watchfiles"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _traceback_with_sql(out: TextIO, exception: ExcInfo) -> None:
    """Writes a traceback, and the statement that PostgreSQL has refused, without its values.

    SQLAlchemy's errors have it in their message.
    """
    plain_traceback(out, exception)
    statement = getattr(exception[1], "query", None)
    if isinstance(exception[1], PostgresError) and statement:
        out.write(f"\n[SQL: {statement}]")


def _json_renderer() -> Processor:
    def dumps(event: Any, default: Any) -> str:
        return orjson.dumps(event, default=default).decode()

    return structlog.processors.JSONRenderer(serializer=dumps)
