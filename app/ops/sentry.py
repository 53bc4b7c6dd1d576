"""Error reports to Sentry, off until `APP_SENTRY_DSN` is set."""

import logging
import sys
from typing import Any

import sentry_sdk
import structlog
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from sentry_sdk.types import Event, Hint
from structlog.typing import EventDict, WrappedLogger

from shared.settings import Settings

EXCLUDED_FIELDS = frozenset({"event", "exc_info", "level", "timestamp"})


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
        before_send=_before_send,
        auto_enabling_integrations=False,  # they import each package that is installed
        integrations=[StarletteIntegration(), FastApiIntegration()],
        disabled_integrations=[LoggingIntegration()],  # `report_error` sends more context
    )


def report_error(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: sends events of level error or higher to Sentry."""
    if logging.getLevelNamesMapping()[event["level"].upper()] >= logging.ERROR:
        with sentry_sdk.new_scope() as scope:
            context = {key: event[key] for key in event if key not in EXCLUDED_FIELDS}
            scope.set_context("log", context)
            given = event.get("exc_info")
            error = sys.exc_info() if given is True else given
            if error and error != (None, None, None):
                scope.capture_exception(error)
            else:
                scope.capture_message(str(event["event"]), event["level"])
    return event


def _before_send(event: Event, _hint: Hint) -> Event:
    """Adds the ids of the request and the user to a Sentry event.

    Removes the query string, and the address of the page that sent the request, which has one too:
    single sign-on codes and search terms are in them.
    """
    known = structlog.contextvars.get_contextvars()
    if "request_id" in known:
        event.setdefault("tags", {})["request_id"] = known["request_id"]
    if "user_id" in known:
        event["user"] = {"id": known["user_id"]}
    request: dict[str, Any] = event.get("request", {})
    request.pop("query_string", None)
    request.get("headers", {}).pop("referer", None)
    return event
