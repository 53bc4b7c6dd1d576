"""The log events of the application."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from structlog.typing import EventDict, WrappedLogger


@pytest.fixture
def events(app: FastAPI) -> Iterator[list[Mapping[str, Any]]]:
    """The log events so far, oldest first: `[e["event"] for e in events]`.

    The level is `warning`, unless a test overrides `settings`.
    """
    assert app, "it sets up the log anew"
    collected: list[Mapping[str, Any]] = []

    def collect(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        collected.append(dict(event))
        return event

    processors = structlog.get_config()["processors"]
    structlog.configure(processors=[*processors, collect])
    yield collected
    structlog.configure(processors=processors)
