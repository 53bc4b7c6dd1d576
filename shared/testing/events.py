"""What the application logs."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from structlog.typing import EventDict, WrappedLogger


@pytest.fixture
def events(app: FastAPI) -> Iterator[list[Mapping[str, Any]]]:
    """What has been logged, oldest first: `[e["event"] for e in events]`. In tests that is what
    is at least a warning, unless `settings` say otherwise."""
    assert app, "it sets up the log anew"
    noted: list[Mapping[str, Any]] = []

    def note(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        noted.append(dict(event))
        return event

    processors = structlog.get_config()["processors"]
    structlog.configure(processors=[*processors, note])
    yield noted
    structlog.configure(processors=processors)
