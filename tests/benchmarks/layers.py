"""Measures where the time of `GET /items/{id}` goes, with routes that each do more of its work, in
one process. Calls the application directly, without a server or a socket.

python -m tests.benchmarks.layers
"""

import os
import statistics
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated

import uvloop
from fastapi import APIRouter, Request, Response
from sqlalchemy import literal, select
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from app.main import create_app
from shared.auth import Principal, requires
from shared.db import ReadSession
from shared.settings import Settings
from tests.benchmarks.common import migrated_database, save
from tests.benchmarks.endpoints import prepare
from tests.kit import calls

ROUNDS = 300
CALLS = 5
ONE = select(literal(1))
ANSWER = Response(b'{"id": 1}', media_type="application/json")

Reader = Annotated[Principal, requires("items:read")]
layers = APIRouter(prefix="/layers")


async def barely(_request: Request) -> Response:
    return ANSWER


starlette = Starlette(routes=[Route("/", barely)])


@layers.get("/nothing")
async def nothing() -> Response:
    return ANSWER


@layers.get("/principal")
async def principal(_: Reader) -> Response:
    return ANSWER


@layers.get("/session")
async def session(_: Reader, _session: ReadSession) -> Response:
    return ANSWER


@layers.get("/statement")
async def statement(_: Reader, session: ReadSession) -> Response:
    await session.fetch(ONE)
    return ANSWER


async def measure(settings: Settings) -> dict[str, float]:
    """Returns the median CPU microseconds of this thread per call; the routes take turns."""
    token, (get, *_) = await prepare(settings)
    logging = settings.model_copy(update={"log_level": "info", "log_format": "json"})
    app = create_app(logging, run_tasks=False)
    app.include_router(layers)
    routes: dict[str, tuple[ASGIApp, str]] = {
        "Starlette alone": (starlette, "/"),
        "FastAPI alone": (calls.minimal_app, "/"),
        "middleware, the routers of all slices, the log line": (app, "/layers/nothing"),
        "the token and its scopes": (app, "/layers/principal"),
        "a read session": (app, "/layers/session"),
        "a statement that asks for nothing": (app, "/layers/statement"),
        "the item: path, row, model, entity tag, JSON": (app, get.path),
    }
    found: dict[str, list[float]] = {name: [] for name in routes}
    async with app.router.lifespan_context(app):
        for _ in range(ROUNDS):
            for name, (asked, path) in routes.items():
                started = time.thread_time()
                for _ in range(CALLS):
                    await calls.get(asked, path, token)
                found[name].append((time.thread_time() - started) / CALLS * 1e6)
    return {name: statistics.median(each[ROUNDS // 10 :]) for name, each in found.items()}


def main() -> None:
    with (
        migrated_database() as settings,
        Path(os.devnull).open("w") as nowhere,
        redirect_stderr(nowhere),
    ):
        found = uvloop.run(measure(settings))
    save("layers", found)
    whole, before = max(found.values()), 0.0
    print("| what | CPU µs | of the whole |\n|---|---|---|")
    for name, until in found.items():
        print(f"| {name} | {until - before:.0f} | {(until - before) / whole:.0%} |")
        before = until


if __name__ == "__main__":
    main()
