"""What the application logs."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi import FastAPI


class _Noting(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[Mapping[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, Mapping):
            self.events.append(record.msg)


@pytest.fixture
def events(app: FastAPI) -> Iterator[list[Mapping[str, Any]]]:
    """What has been logged, oldest first: `[e["event"] for e in events]`. In tests that is what
    is at least a warning, unless `settings` say otherwise."""
    assert app, "it sets up the log anew"
    handler = _Noting()
    logging.getLogger().addHandler(handler)
    yield handler.events
    logging.getLogger().removeHandler(handler)
