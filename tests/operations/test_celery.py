"""Background tasks in the API's process and on Celery, with a real Redis and a real worker, and
without either."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import asyncpg
import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI
from redis import Redis as Connection

from shared.problems import Unavailable
from shared.settings import Settings
from shared.tasks import Task
from tests.app_helpers import capture_log, sample, scrape_metrics
from tests.kit import PASSWORD, Redis, free_port, wait_until
from tests.kit.servers import execute
from tests.operations.collecting import Collector
from tests.repository_copies import BIN
from tests.serving import ROOT, children, environment, serving, stop

pytestmark = pytest.mark.verify

WITHIN_SECONDS = 60.0
STOP_SECONDS = 60.0  # a pool process waits up to 30 s until its last result is read
INLINE = """
import sys
from app.main import create_app
from shared.settings import Settings
settings = Settings(env="test", sentry_dsn="http://key@127.0.0.1/1",
    database_url="postgresql://127.0.0.1/none", secret_key="a secret for tests, 32 bytes or more")
create_app(settings)
print(*[name for name in sys.modules if name.partition(".")[0] in ("celery", "kombu")])
"""


def test_inline_imports_nothing_of_celery() -> None:
    command = [sys.executable, "-c", INLINE]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)
    assert said.stdout.strip() == b""


@pytest.fixture
def variables(settings: Settings, redis: Redis) -> dict[str, str]:
    return {
        "env": "test",
        "database_url": settings.database_url or "",
        "secret_key": settings.secret(),
        "redis_url": redis.url,
        "task_queue": "celery",
    }


@contextmanager
def celery_worker(
    variables: dict[str, str], folder: Path, processes: int = 2, pool: str = "prefork"
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `celery -A app.celery.worker worker` with `processes` processes for the duration of the
    block."""
    how = ["--concurrency", str(processes), "--pool", pool]
    with (folder / "celery.log").open("ab") as log:
        process = subprocess.Popen(
            [BIN / "celery", "-A", "app.celery.worker", "worker", *how],
            cwd=ROOT,
            env=environment(variables),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        stop(process, STOP_SECONDS)


@pytest.fixture
def client(variables: dict[str, str], tmp_path: Path) -> Iterator[httpx.Client]:
    """A signed-in client of an API process whose background tasks run on Celery."""
    with signed_in(variables, tmp_path) as client:
        yield client


@contextmanager
def signed_in(variables: dict[str, str], tmp_path: Path) -> Iterator[httpx.Client]:
    """Runs an API process for the duration of the block; yields a client that is signed in."""
    with (
        serving(tmp_path, free_port(), variables) as served,
        httpx.Client(base_url=served.address, timeout=30) as client,
    ):
        body = {"email": "ada@example.com", "password": PASSWORD}
        client.post("/users", json=body).raise_for_status()
        form = {"grant_type": "password", "username": body["email"], "password": PASSWORD}
        granted = client.post("/auth/token", data=form).raise_for_status()
        client.headers["Authorization"] = f"Bearer {granted.json()['access_token']}"
        yield client


def add(client: httpx.Client, count: int) -> None:
    for number in range(count):
        item = {"title": f"Mug {number}", "price": 1}
        client.post("/items", json=item).raise_for_status()


def status(client: httpx.Client) -> tuple[int, int]:
    """Returns the numbers of indexed and of pending items."""
    found = client.get("/search/status").raise_for_status().json()
    return found["indexed"], found["pending"]


def wait_until_indexed(client: httpx.Client, items: int) -> None:
    wait_until(lambda: status(client) == (items, 0), f"an index of {items} items", WITHIN_SECONDS)


EXPIRED = """
INSERT INTO idempotency_keys (user_id, key, fingerprint, status, headers, body, expires_at)
VALUES (gen_random_uuid(), 'old', '', 200, '{}', '', now() - interval '1 minute')
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("queue", ["inline", "celery"])
def test_celery_runs_the_background_tasks(
    variables: dict[str, str],
    queue: str,
    collector: Collector,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mail is sent, items are indexed, expired rows are deleted, and traces are propagated."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    asyncio.run(execute(database_url, EXPIRED))
    chosen = variables | {"task_queue": queue}
    workers = celery_worker(chosen, tmp_path) if queue == "celery" else nullcontext()
    with workers, signed_in(chosen, tmp_path) as client:
        add(client, 3)
        wait_until_indexed(client, 3)
        for table in ("outgoing_mail", "idempotency_keys"):
            wait_until_empty(database_url, table)
        if queue == "celery":
            chain = ("send", "receive", "task")
            wait_until(
                lambda: in_one_trace(collector, *chain), "a trace of all steps", WITHIN_SECONDS
            )


def wait_until_empty(database_url: str, table: str) -> None:
    wait_until(
        lambda: rows(database_url, table) == 0, f"the end of all rows of {table}", WITHIN_SECONDS
    )


def rows(database_url: str, table: str) -> int:
    async def count() -> int:
        connection = await asyncpg.connect(database_url)
        try:
            found: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
            return found
        finally:
            await connection.close()

    return asyncio.run(count())


def in_one_trace(collector: Collector, *steps: str) -> set[bytes]:
    """Returns the ids of the traces that contain all of these steps of the embedding task."""
    traces = [
        {span.trace_id for span in collector.spans() if span.name == f"{step} search_embeddings"}
        for step in steps
    ]
    return set.intersection(*traces)


@pytest.mark.skipif(not (ROOT / "features/search").exists(), reason="search brings the work")
@pytest.mark.timeout(240)
def test_work_goes_on_whatever_is_killed(
    client: httpx.Client, variables: dict[str, str], redis: Redis, tmp_path: Path
) -> None:
    add(client, 5)
    assert status(client) == (0, 5), "nobody works but Celery"

    with celery_worker(variables, tmp_path) as worker:
        wait_until_indexed(client, 5)

        add(client, 200)
        redis.kill()  # messages are fetched, but not yet acknowledged
        redis.start()
        wait_until_indexed(client, 205)

        add(client, 100)
        for pid in children(worker.pid):  # during a batch, or shortly before
            os.kill(pid, signal.SIGKILL)
        wait_until_indexed(client, 305)
        assert worker.poll() is None

    add(client, 3)
    assert status(client) == (305, 3)
    with celery_worker(variables, tmp_path):
        wait_until_indexed(client, 308)


@pytest.mark.timeout(240)
def test_mail_waits_for_no_backlog_of_embeddings_and_neither_does_the_end(
    client: httpx.Client, variables: dict[str, str], redis: Redis, tmp_path: Path
) -> None:
    rows = "".join(f'{{"title": "Enamel mug {number}", "price": 1}}\n' for number in range(5000))
    imported = client.post(
        "/items/import", content=rows, headers={"Content-Type": "application/jsonl"}
    )
    assert imported.raise_for_status().json()["created"] == 5000
    with Connection.from_url(redis.url) as connection:
        assert connection.llen("search_embeddings") == 1, (
            "what one message says, two do not say better"
        )

    with celery_worker(variables, tmp_path, processes=1):
        wait_until(lambda: status(client)[0] > 0, "the first batch of the index", WITHIN_SECONDS)
        another = {"email": "grace@example.com", "password": PASSWORD}
        client.post("/users", json=another).raise_for_status()
        wait_until_mail_is_sent(client)
        assert waiting(client, "search_embeddings") > 0
    assert status(client)[1] > 0


def waiting(client: httpx.Client, task: str) -> float:
    """Returns the number of rows that wait for a task, from /metrics."""
    metrics = client.get("/metrics").raise_for_status().text
    line = f'tessera_backlog_rows{{state="waiting",task="{task}"}} '
    return float(metrics.partition(line)[2].split()[0])


def wait_until_mail_is_sent(client: httpx.Client) -> None:
    wait_until(
        lambda: waiting(client, "deliver_mail") == 0,
        "the end of the mail's backlog",
        WITHIN_SECONDS,
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_one_port_tells_what_all_processes_of_a_worker_count(
    client: httpx.Client,  # its confirmation mail is a task
    variables: dict[str, str],
    pool: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    monkeypatch.setenv("TMPDIR", str(files))
    port = free_port()
    metrics = f"http://127.0.0.1:{port}/metrics"
    done = sample("tessera_task_rows_total", task="deliver_mail")

    def counting() -> set[int]:
        labels = [dict(labels) for name, labels in scrape_metrics(metrics)]
        return {int(found["pid"]) for found in labels if found.get("pool") == "write"}

    with celery_worker(variables | {"metrics_port": str(port)}, tmp_path, pool=pool) as worker:
        wait_until_mail_is_sent(client)
        wait_until(
            lambda: scrape_metrics(metrics).get(done) == 1, "the count of one mail", WITHIN_SECONDS
        )
        if pool == "prefork":
            wait_until(
                lambda: counting() == set(children(worker.pid)),
                "the numbers of each process",
                WITHIN_SECONDS,
            )
            killed = min(counting())
            os.kill(killed, signal.SIGKILL)
            wait_until(
                lambda: killed not in counting(),
                "numbers without the killed process",
                WITHIN_SECONDS,
            )
        else:
            assert counting() == {worker.pid}
        assert scrape_metrics(metrics)[done] == 1
    assert not list(files.glob("tessera-*"))


def test_a_batch_that_fails_is_no_error_of_celerys(
    app: FastAPI, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_REDIS_URL", redis.url)
    from app.celery import worker

    async def unavailable(_app: FastAPI) -> int:
        raise Unavailable("The database cannot be reached")

    lines = capture_log()
    app.state.tasks = [Task(name="probe", run=unavailable, every=600)]
    with start_blocking_portal("asyncio") as portal:
        monkeypatch.setattr(worker.process, "app", app, raising=False)
        monkeypatch.setattr(worker.process, "portal", portal, raising=False)
        worker.run_by_name("probe", {})
    assert "task_postponed" in lines.getvalue()
    assert "Traceback" not in lines.getvalue()


def test_celery_needs_redis() -> None:
    with pytest.raises(ValueError, match="APP_TASK_QUEUE=celery needs APP_REDIS_URL"):
        Settings(task_queue="celery")
