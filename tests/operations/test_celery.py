"""Background tasks in the API's process and on Celery, with a real Redis and a real worker, and
without either."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import asyncpg
import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI

from shared.problems import Unavailable
from shared.settings import Settings
from shared.tasks import Task
from tests.app_helpers import INSERT_EXPIRED_KEY, capture_log, sample, scrape_metrics
from tests.kit import Redis, free_port, wait_until
from tests.kit.servers import execute
from tests.operations.celery_workers import (
    WITHIN_SECONDS,
    celery_worker,
    client,
    signed_in,
    variables,
    wait_until_mail_is_sent,
)
from tests.operations.collecting import Collector
from tests.serving import ROOT, children

pytestmark = pytest.mark.verify

__all__ = ["client", "variables"]

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
    """Mail is sent, expired rows are deleted, and traces are propagated."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    asyncio.run(execute(database_url, INSERT_EXPIRED_KEY))
    chosen = variables | {"task_queue": queue}
    workers = celery_worker(chosen, tmp_path) if queue == "celery" else nullcontext()
    with workers, signed_in(chosen, tmp_path):
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
    """Returns the ids of the traces that contain all of these steps of the task that sends mail."""
    traces = [
        {span.trace_id for span in collector.spans() if span.name == f"{step} deliver_mail"}
        for step in steps
    ]
    return set.intersection(*traces)


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
