"""What leaves the process for those who watch it: errors, to Sentry where a DSN is set."""

import logging

import sentry_sdk
from sentry_sdk.integrations.logging import LoggingIntegration

from shared.settings import Settings


def configure_sentry(settings: Settings, release: str) -> None:
    """Sends what is logged as an error. Expected 4xx answers are not errors and never sent."""
    if settings.sentry_dsn is None:
        return
    sentry_sdk.init(
        dsn=settings.sentry_dsn,
        environment=settings.env,
        release=release,
        send_default_pii=False,
        max_request_body_size="never",
        integrations=[LoggingIntegration(event_level=logging.ERROR)],
    )
