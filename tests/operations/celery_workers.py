"""Celery workers, and an API process whose background tasks run on them."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from shared.settings import Settings
from tests.kit import PASSWORD, Redis, free_port, wait_until
from tests.repository_copies import BIN
from tests.serving import ROOT, environment, serving, stop

WITHIN_SECONDS = 60.0
STOP_SECONDS = 60.0  # a pool process waits up to 30 s until its last result is read


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
