"""Measures the throughput of `GET /items/{id}` by number of workers and of connections.

python -m tests.benchmarks.workers [SECONDS [ROUNDS]]

The load generator, PostgreSQL and the workers share the cores of this machine: on two cores, two
workers cannot have one core each.
"""

import asyncio
import os
import shutil
import statistics
import sys
from contextlib import ExitStack
from dataclasses import replace

from tests.benchmarks.common import migrated_database, save
from tests.benchmarks.endpoints import OURS, load, prepare, ratios, served

WORKERS = (1, 2)
CONNECTIONS = (1, 4, 16, 64)


def main(seconds: float = 2, rounds: int = 5) -> None:
    if shutil.which("wrk") is None:
        print("workers: there is no wrk (apt-get install wrk)")
        return
    with migrated_database() as settings, ExitStack() as stack:
        token, (one_item, *_) = asyncio.run(prepare(settings))
        one, two = (
            stack.enter_context(served(OURS, settings, 18_610 + workers, workers))
            for workers in WORKERS
        )
        found: dict[int, list[list[float]]] = {}
        print(f"{os.cpu_count()} cores\n")
        print("| connections | 1 worker, requests/s | 2 workers, of one |\n|---|---|---|")
        for connections in CONNECTIONS:
            get = replace(one_item, connections=connections)
            for server in (one, two):
                load(server, get, token, seconds)  # warm-up
                server.rates.clear()
            for _ in range(rounds):
                for server in (one, two):
                    load(server, get, token, seconds)
            rate = statistics.median(one.rates[get.name])
            growth = ratios(two.rates[get.name], one.rates[get.name])
            print(f"| {connections} | {rate:,.0f} | {growth} |")
            found[connections] = [one.rates[get.name], two.rates[get.name]]
    save("workers", {"connections": found})


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
