"""Serves Tessera with `app.server`, without background tasks: the servers that it is compared with
have none.

python -m tests.benchmarks.tessera PORT WORKERS
"""

import sys

from fastapi import FastAPI

from app.main import create_app
from app.server import listen, serve, serve_with_workers


def without_tasks() -> FastAPI:
    return create_app(run_tasks=False)


def main(port: int, workers: int) -> None:
    listener = listen("127.0.0.1", port)
    if workers == 1:
        serve(without_tasks(), listener, lambda: None)
    else:
        serve_with_workers(listener, workers, lambda: None, f"{__spec__.name}:without_tasks")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
