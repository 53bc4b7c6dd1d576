"""What these tests share: an application with a route of the test's own, and problems."""

import io
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI
from httpx import Response
from structlog.stdlib import ProcessorFormatter

from app.main import create_app
from shared.errors import MEDIA_TYPE, Problem
from shared.features import Feature, find_features
from shared.settings import Settings


@asynccontextmanager
async def app_with(
    settings: Settings, probe: APIRouter, **constraints: Problem
) -> AsyncIterator[FastAPI]:
    """The running application with one feature more, made of these routes."""
    feature = Feature(name="probe", router=probe, constraints=constraints)
    app = create_app(settings, [*find_features(), feature], run_tasks=False)
    async with app.router.lifespan_context(app):
        yield app


def problem(response: Response, status: int) -> dict[str, Any]:
    """The problem details of an error, which must be whole."""
    assert response.status_code == status, response.text
    assert type(response.status_code) is int, "an HTTPStatus is logged by its name"
    assert response.headers["content-type"] == MEDIA_TYPE
    body: dict[str, Any] = response.json()
    assert set(body) - {"errors"} == {
        "type",
        "title",
        "status",
        "detail",
        "instance",
        "request_id",
    }
    assert (body["type"], body["status"]) == ("about:blank", status)
    assert body["instance"] == quote(response.request.url.path)
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def captured_log() -> io.StringIO:
    """What is logged from now on, as it is written."""
    lines = io.StringIO()
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, ProcessorFormatter):
            handler.setStream(lines)  # type: ignore[attr-defined]  # it is our StreamHandler
    return lines
