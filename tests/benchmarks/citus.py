"""Measures requests on a cluster of Citus against plain PostgreSQL: one server, with one
database that is distributed over two workers, and one that is not.

python -m tests.benchmarks.citus [ROUNDS [REQUESTS]]

All containers share the cores of this machine, so this shows what the cluster costs, not what its
machines add.
"""

import asyncio
import json
import secrets
import statistics
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from typing import Any, TypeAlias

import httpx
from pydantic import SecretStr

from app.migrations import upgrade
from shared.settings import Settings
from tests.benchmarks.common import save
from tests.benchmarks.endpoints import OURS, prepare, ratios, served
from tests.declarations import declared
from tests.kit.citus import (
    Cluster,
    create_cluster_database,
    distribute_all,
    of_database,
    running_cluster,
)
from tests.kit.servers import docker_answers, execute

IMPORTED = 5_000
MUG = {"title": "Enamel mug", "price": 12.5}
JSONL = {"Content-Type": "application/jsonl"}

Times: TypeAlias = dict[str, list[float]]


def create_databases(cluster: Cluster) -> list[Settings]:
    """Creates both databases; the second is distributed."""
    coordinator = cluster.urls[0]
    asyncio.run(execute(coordinator, "CREATE DATABASE plain"))
    asyncio.run(create_cluster_database(cluster.urls, "distributed"))
    urls = [of_database(coordinator, name) for name in ("plain", "distributed")]
    for url in urls:
        upgrade(url)
    asyncio.run(distribute_all(urls[1]))
    secret = SecretStr("benchmark " * 4)
    return [
        Settings(env="test", database_url=url, secret_key=secret, log_level="warning")
        for url in urls
    ]


def rows() -> str:
    return "\n".join(
        json.dumps({"external_id": secrets.token_hex(8), "title": f"Kettle {n}", "price": 12.5})
        for n in range(IMPORTED)
    )


def timed(
    times: Times, client: httpx.Client, name: str, method: str, path: str, **body: Any
) -> Any:
    """Records the seconds of a request; returns its answer."""
    started = time.perf_counter()
    answer = client.request(method, path, **body)
    times[name].append(time.perf_counter() - started)
    answer.raise_for_status()
    return answer


def ask(times: Times, client: httpx.Client, item_path: str) -> None:
    """Sends one request of each kind."""
    created = timed(times, client, "POST /items", "POST", "/items", json=MUG)
    timed(times, client, "DELETE /items/{id}", "DELETE", created.headers["location"])
    timed(times, client, "PATCH /items/{id}", "PATCH", item_path, json={"price": 9.5})
    timed(times, client, "GET /items/{id}", "GET", item_path)
    timed(times, client, "GET /items?limit=20", "GET", "/items?limit=20")
    for name, path in declared("load", "PATHS_TIMED").items():
        timed(times, client, name, "GET", path)


def main(rounds: int = 5, requests: int = 40) -> None:
    if not docker_answers():
        print("citus: no Docker daemon answers")
        return
    found: dict[str, list[list[float]]] = {}
    with running_cluster() as cluster, ExitStack() as stack:
        clients = []
        for number, settings in enumerate(create_databases(cluster)):
            token, (one_item, *_) = asyncio.run(prepare(settings))
            server = stack.enter_context(served(OURS, settings, 18_620 + number))
            headers = {"Authorization": f"Bearer {token}"}
            client = httpx.Client(base_url=server.address, headers=headers, timeout=600)
            clients.append((stack.enter_context(client), one_item.path))
            ask(defaultdict(list), *clients[-1])  # warm-up
        for _ in range(rounds):
            both: list[Times] = [defaultdict(list), defaultdict(list)]
            for _ in range(requests):
                for times, (client, path) in zip(both, clients, strict=True):
                    ask(times, client, path)
            for times, (client, _) in zip(both, clients, strict=True):
                name = f"POST /items/import, {IMPORTED:,} rows"
                timed(times, client, name, "POST", "/items/import", content=rows(), headers=JSONL)
            for name in both[0]:
                medians = [statistics.median(times[name]) for times in both]
                found.setdefault(name, []).append(medians)
    print("| one request at a time | plain, ms | distributed, of plain |\n|---|---|---|")
    for name, pairs in found.items():
        plain, distributed = (list(each) for each in zip(*pairs, strict=True))
        milliseconds = statistics.median(plain) * 1000
        print(f"| `{name}` | {milliseconds:,.1f} | {ratios(distributed, plain)} |")
    save("citus", found)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
