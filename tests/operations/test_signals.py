"""Telemetry as its receivers get it: Sentry envelopes, OTLP spans, Prometheus text.

The process under test has one extra route and one extra background task, both with a bug.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx import AsyncClient
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from app.main import create_app
from app.ops.metrics import SHARDS
from shared.settings import Settings
from shared.state import state_of
from tests.app_helpers import INSERT_EXPIRED_KEY, Sample, parse_metrics, sample, scrape_metrics
from tests.kit import PASSWORD, connect, free_port, wait_until
from tests.kit.servers import execute
from tests.operations.collecting import Collector
from tests.serving import ROOT, environment, read_line, serving, stop

SECRET = "correct-horse-battery"
WITHIN_SECONDS = 30.0
PROGRAM = f"""
import socket, sys
import httpx
from fastapi import APIRouter
from app.main import create_app
from app.server import serve
from shared.auth import Principal, requires
from shared.feature import Feature
from app.discovery import find_features
from shared.tasks import Task

router = APIRouter()

@router.post("/probe")
async def fail(
    body: dict[str, str],
    q: str = "",
    code: str = "",
    state: str = "",
    principal: Principal = requires("users:self"),
) -> None:
    password = "{SECRET}"
    raise RuntimeError("a bug in a route")

@router.get("/probe")
async def call(url: str) -> None:
    async with httpx.AsyncClient() as client:
        await client.post(url)

failures = iter([RuntimeError("a bug in a task")])

async def drain(app) -> int:
    for failure in failures:
        raise failure
    return 0

tasks = [Task(name="probe", run=drain, every=60)]
probe = Feature(name="probe", router=router, tasks=tasks)
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
serve(create_app(features=[*find_features(), probe]), listener, lambda: print(port, flush=True))
"""


@dataclass(frozen=True)
class Probed:
    client: httpx.Client
    user_id: str
    log: Path

    def lines(self, request_id: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line.get("request_id") == request_id]


@pytest.fixture
def probed(collector: Collector, settings: Settings, tmp_path: Path) -> Iterator[Probed]:
    """Runs the application in a process that sends its telemetry to the collector."""
    wanted = {
        "env": "test",
        "database_url": settings.database_url or "",
        "secret_key": settings.secret(),
        "log_format": "json",
        "sentry_dsn": f"http://key@{collector.address}/1",
    }
    variables = environment(wanted) | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        port = read_line(process, "the port of the server").decode().strip()
        assert port, log.read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            body = {"email": "ada@example.com", "password": PASSWORD}
            user_id = client.post("/users", json=body).json()["id"]
            form = {"grant_type": "password", "username": body["email"], "password": PASSWORD}
            token = client.post("/auth/token", data=form).json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            yield Probed(client, user_id, log)
    finally:
        stop(process)


@pytest.mark.verify
def test_one_request_id_joins_answer_log_event_and_trace(
    collector: Collector, probed: Probed
) -> None:
    answer = probed.client.post("/probe?code=" + SECRET, json={"secret": SECRET})
    assert answer.status_code == 500
    request_id = answer.json()["request_id"]

    def event_of_the_request() -> list[dict[str, Any]]:
        events = collector.events()
        return [e for e in events if e.get("tags", {}).get("request_id") == request_id]

    (event,) = wait_until(event_of_the_request, "the event of the request", WITHIN_SECONDS)
    (error,) = event["exception"]["values"]
    assert (error["type"], error["value"]) == ("RuntimeError", "a bug in a route")
    assert error["stacktrace"]["frames"][-1]["function"] == "fail"
    assert event["user"] == {"id": probed.user_id}
    assert (event["environment"], event["release"]) == ("test", "tessera@0.1.0")
    assert SECRET not in json.dumps(collector.events())

    span = span_of(collector, request_id)
    lines = probed.lines(request_id)
    assert [line["event"] for line in lines] == ["unhandled_error", "request"]
    assert {line["trace_id"] for line in lines} == {span.trace_id.hex()}


@pytest.mark.verify
def test_an_error_of_a_background_task_is_sent_and_what_clients_do_wrong_is_not(
    collector: Collector, probed: Probed
) -> None:
    client = probed.client
    for method, path in (("GET", "/nowhere"), ("PUT", "/items"), ("POST", "/items")):
        assert 400 <= client.request(method, path).status_code < 500
    assert client.get("/users").status_code == 403
    assert client.get("/items", headers={"Authorization": "Bearer x"}).status_code == 401
    wait_until(collector.events, "the event of the task", WITHIN_SECONDS)
    assert client.post("/probe", json={}).status_code == 500
    wait_until(lambda: len(collector.events()) > 1, "the event of the request", WITHIN_SECONDS)
    events = collector.events()
    values = [event["exception"]["values"][-1]["value"] for event in events]
    assert sorted(values) == ["a bug in a route", "a bug in a task"]


@pytest.mark.verify
def test_queries_are_parts_of_the_trace_and_probes_are_none(
    collector: Collector, probed: Probed
) -> None:
    assert probed.client.get("/readyz").status_code == 200
    answer = probed.client.get("/items")
    request_id = answer.headers["x-request-id"]
    span = span_of(collector, request_id)
    assert span.name == "GET /items"

    def queries() -> list[Span]:
        inside = [s for s in collector.spans() if s.parent_span_id == span.span_id]
        return [s for s in inside if s.name.startswith("SELECT")]

    found = wait_until(queries, "the span of a query", WITHIN_SECONDS)
    assert {s.trace_id for s in found} == {span.trace_id}
    assert not [s for s in collector.spans() if "readyz" in s.name]


@pytest.mark.verify
def test_calls_of_other_services_are_traced(collector: Collector, probed: Probed) -> None:
    url = f"http://{collector.address}/elsewhere"
    answer = probed.client.get("/probe", params={"url": url})
    span = span_of(collector, answer.headers["x-request-id"])

    def calls() -> list[Span]:
        return [s for s in collector.spans() if s.parent_span_id == span.span_id]

    (call,) = wait_until(calls, "the span of the call", WITHIN_SECONDS)
    assert (call.name, call.trace_id) == ("POST", span.trace_id)


@pytest.mark.verify
def test_what_is_in_a_query_is_exported_by_nothing(collector: Collector, probed: Probed) -> None:
    client, query = probed.client, {"q": SECRET, "code": SECRET, "state": SECRET}
    referer = {"Referer": f"https://shop.example/?q={SECRET}"}
    answers = [client.get(path, params=query, headers=referer) for path in ("/items", "/nowhere")]
    elsewhere = f"http://{collector.address}/elsewhere?q={SECRET}"
    answers += [client.get("/probe", params={"url": elsewhere}, headers=referer)]
    answers += [client.post("/probe", params=query, json={}, headers=referer)]
    assert [answer.status_code for answer in answers][2:] == [200, 500]
    spans = [span_of(collector, answer.headers["x-request-id"]) for answer in answers]

    def calls() -> list[Span]:
        return [s for s in collector.spans() if s.parent_span_id == spans[2].span_id]

    wait_until(calls, "the span of the call", WITHIN_SECONDS)
    wait_until(lambda: len(collector.events()) > 1, "the event of the request", WITHIN_SECONDS)
    found = [path for path, body in collector.received if SECRET.encode() in body]
    assert found == []
    assert SECRET not in probed.log.read_text()


def span_of(collector: Collector, request_id: str) -> Span:
    """Waits for the one span with this request id, which is exported after the answer."""

    def found() -> list[Span]:
        return [
            span
            for span in collector.spans()
            for attribute in span.attributes
            if (attribute.key, attribute.value.string_value) == ("request.id", request_id)
        ]

    [span] = wait_until(found, "the span of the request", WITHIN_SECONDS)
    return span


async def numbers(client: AsyncClient) -> dict[Sample, float]:
    """Returns the samples of /metrics by name and labels."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return parse_metrics(answer.text)


async def test_requests_are_counted_by_the_template_of_their_route(client: AsyncClient) -> None:
    found = sample(
        "http_request_duration_seconds_count", method="GET", route="/items/{item_id}", status="404"
    )
    lost = sample("http_request_duration_seconds_count", method="other", route="none", status="404")
    before = await numbers(client)
    for number in range(3):
        await client.get(f"/items/00000000-0000-7000-8000-00000000000{number}")
        await client.request(f"FETCH{number}", f"/nowhere/{number}")
    after = await numbers(client)
    assert after[found] - before.get(found, 0) == 3
    assert after[lost] - before.get(lost, 0) == 3
    assert not [name for name, labels in after if "nowhere" in str(labels)]


async def test_metrics_show_the_waiting_rows(client: AsyncClient) -> None:
    SHARDS.clear()  # those of a cluster in an earlier test
    await client.post("/items", json={"title": "Mug", "price": 1})
    shown = await numbers(client)
    assert shown[sample("tessera_backlog_rows", task="deliver_mail", state="waiting")] == 1
    assert shown[sample("tessera_backlog_rows", task="deliver_mail", state="parked")] == 0
    assert shown[sample("tessera_backlog_age_seconds", task="deliver_mail")] > 0
    assert shown[sample("tessera_database_connections_max", pool="write")] == 10
    assert not [name for name, _ in shown if name == "tessera_citus_shards"]


async def test_a_database_that_is_gone_fails_no_scrape(settings: Settings) -> None:
    nowhere = "postgresql://127.0.0.1:1/gone"
    gone = settings.model_copy(update={"database_url": nowhere, "database_replica_url": nowhere})
    app = create_app(gone, run_tasks=False)
    async with app.router.lifespan_context(app), connect(app) as client:
        state_of(app).shards = {"worker9:5432": 2}  # as it was read before
        shown = await numbers(client)
    assert sample("tessera_database_connections_max", pool="read") in shown
    assert isnan(shown[sample("tessera_citus_shards", worker="worker9:5432")])
    assert all(isnan(shown[name]) for name in shown if name[0].startswith("tessera_backlog"))


@pytest.mark.timeout(240)
@pytest.mark.verify
def test_each_of_several_workers_answers_for_all(settings: Settings, tmp_path: Path) -> None:
    wanted = {
        "env": "test",
        "database_url": settings.database_url or "",
        "secret_key": settings.secret(),
    }
    lost = sample("http_request_duration_seconds_count", method="GET", route="none", status="404")
    with serving(tmp_path, free_port(), wanted, workers=2) as served:
        metrics = f"{served.address}/metrics"

        def pids() -> set[str]:
            labels = [dict(labels) for name, labels in scrape_metrics(metrics)]
            return {found["pid"] for found in labels if found.get("pool") == "write"}

        wait_until(lambda: len(pids()) == 2, "the numbers of both workers", 60)
        for _ in range(20):
            httpx.get(f"{served.address}/nowhere", timeout=30)
        wait_until(lambda: scrape_metrics(metrics).get(lost) == 20, "the count of the last request")
        assert {scrape_metrics(metrics)[lost] for _ in range(10)} == {20}

        killed = pids().pop()
        os.kill(int(killed), signal.SIGKILL)
        wait_until(lambda: killed not in pids(), "numbers without the killed worker", 60)
        assert scrape_metrics(metrics)[lost] == 20


@pytest.mark.verify
def test_a_worker_without_http_has_metrics(
    settings: Settings, database_url: str, tmp_path: Path
) -> None:
    asyncio.run(execute(database_url, INSERT_EXPIRED_KEY))
    port = free_port()
    wanted = {
        "env": "test",
        "database_url": settings.database_url or "",
        "secret_key": settings.secret(),
        "metrics_port": str(port),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "worker"], cwd=ROOT, env=environment(wanted), stderr=log
        )
    try:
        rows = sample("tessera_task_batch_seconds_count", task="delete_expired_keys")
        url = f"http://127.0.0.1:{port}/metrics"

        def worked() -> list[float]:
            with suppress(httpx.TransportError):
                return [count for name, count in scrape_metrics(url).items() if name == rows]
            return []

        assert wait_until(worked, "the count of a batch", 60)
    finally:
        stop(process)
