"""Shared test helpers: an application with extra routes, problem details, the log and metrics."""

import io
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
from fastapi import APIRouter, FastAPI
from httpx import Response
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from app.discovery import find_features
from app.main import create_app
from app.ops.logging import StructlogHandler
from shared.feature import Feature
from shared.problems import MEDIA_TYPE, Problem
from shared.settings import Settings

INSERT_EXPIRED_KEY = """
INSERT INTO idempotency_keys (owner_id, key, fingerprint, status, headers, body, expires_at)
VALUES (gen_random_uuid(), 'old', '', 200, '{}', '', now() - interval '1 minute')
"""
"""A row that a task of the kernel, `delete_expired_keys`, has to process."""


@asynccontextmanager
async def app_with(
    settings: Settings, probe: APIRouter, **constraints: Problem
) -> AsyncIterator[FastAPI]:
    """Runs the application with an additional feature that has these routes."""
    feature = Feature(name="probe", router=probe, constraints=constraints)
    app = create_app(settings, [*find_features(), feature], run_tasks=False)
    async with app.router.lifespan_context(app):
        yield app


def assert_problem(response: Response, status: int) -> dict[str, Any]:
    """Checks that the response is a complete problem document (RFC 9457), and returns it."""
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


def capture_log(lines: io.StringIO | None = None) -> io.StringIO:
    """Redirects the log to a buffer, and returns the buffer."""
    lines = lines or io.StringIO()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, StructlogHandler):
            handler.setStream(lines)
    return lines


Sample: TypeAlias = tuple[str, frozenset[tuple[str, str]]]
"""The name and the labels of a sample at /metrics."""


def sample(name: str, /, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def parse_metrics(text: str) -> dict[Sample, float]:
    return {
        sample(found.name, **found.labels): found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
    }


def count_shed_requests(reason: str) -> float:
    """Returns how many requests this process has shed for this reason."""
    return REGISTRY.get_sample_value("tessera_requests_shed_total", {"reason": reason}) or 0


def scrape_metrics(url: str) -> dict[Sample, float]:
    return parse_metrics(httpx.get(url, timeout=30).raise_for_status().text)
