"""Items are indexed by Celery despite killed processes, and their backlog holds up nothing else."""

import base64
import json
import os
import pickle
import signal
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from redis import Redis as Connection

from features.search.tests.test_redis import Bomb
from tests.kit import PASSWORD, Redis, wait_until
from tests.operations.celery_workers import (
    WITHIN_SECONDS,
    celery_worker,
    client,
    variables,
    wait_until_mail_is_sent,
    waiting,
)
from tests.serving import children

pytestmark = pytest.mark.verify

__all__ = ["client", "variables"]


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


@pytest.mark.timeout(240)
@pytest.mark.parametrize("hostile", ["pickle", "another task"])
def test_what_others_write_to_a_queue_runs_nothing_and_stops_nothing(
    client: httpx.Client, variables: dict[str, str], redis: Redis, tmp_path: Path, hostile: str
) -> None:
    bomb = tmp_path / "exploded"
    add(client, 3)
    with celery_worker(variables, tmp_path, processes=1) as worker:
        wait_until_indexed(client, 3)
        with Connection.from_url(redis.url) as connection:
            for _ in range(20):
                connection.lpush("search_statistics", hostile_message(hostile, bomb))
        add(client, 3)
        wait_until_indexed(client, 6)
        assert worker.poll() is None
    assert not bomb.exists()


def hostile_message(kind: str, bomb: Path) -> str:
    """Returns a message that an attacker puts into a queue."""
    body = json.dumps([["search_statistics", {}], {}, {}]).encode()
    headers = {"lang": "py", "task": "drain", "id": str(uuid4())}
    content_type = "application/json"
    if kind == "pickle":
        body, content_type = pickle.dumps(Bomb(bomb)), "application/x-python-serialize"
    else:
        headers["task"] = "os.system"
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": content_type,
            "headers": headers,
            "properties": {
                "body_encoding": "base64",
                "delivery_info": {"exchange": "", "routing_key": "search_statistics"},
                "delivery_tag": str(uuid4()),
            },
        }
    )
