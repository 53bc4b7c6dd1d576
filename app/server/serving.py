"""The HTTP server: uvicorn in one process or several."""

import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import parent_process
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.main import create_app
from app.server.draining import (
    GracefulHttpProtocol,
    GracefulWebSocketProtocol,
    drain_on_sigterm,
)
from app.server.supervision import exit_with_parent

START_TIMEOUT_SECONDS = 60

MAX_MESSAGE_BYTES = 1_000_000  # of a websocket, decompressed
HUNG_SECONDS = 10  # a worker that does not answer the supervisor for so long is replaced

OnReady = Callable[[], None]


class ApiServer(uvicorn.Server):
    """A uvicorn server that calls `on_ready` once it can answer."""

    app: FastAPI
    on_ready: OnReady

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            drain_on_sigterm(self.app)
            self.on_ready()


class WorkerSupervisor(Multiprocess):
    """Several processes that serve one socket. One that dies is replaced; SIGHUP replaces each in
    turn."""

    on_ready: OnReady

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(START_TIMEOUT_SECONDS) for process in self.processes):
            self.on_ready()

    def restart_all(self) -> None:
        # uvicorn gives a new process only as long to start as a running one has to answer.
        self.config.timeout_worker_healthcheck = START_TIMEOUT_SECONDS
        try:
            super().restart_all()
        finally:
            self.config.timeout_worker_healthcheck = HUNG_SECONDS

    def run(self) -> None:
        super().run()
        if any(process.exitcode == STARTUP_FAILURE for process in self.processes):
            sys.exit(STARTUP_FAILURE)

    def terminate_all(self) -> None:
        # While one process has the socket open, the operating system accepts new connections on it.
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def serve(app: FastAPI, listener: socket.socket, on_ready: OnReady) -> None:
    """Serves until SIGINT or SIGTERM, and finishes the requests in progress."""
    server = ApiServer(_config(app))
    server.app, server.on_ready = app, on_ready
    server.run(sockets=[listener])


def serve_with_workers(
    listener: socket.socket,
    workers: int,
    on_ready: OnReady,
    factory: str = "app.server.serving:worker_app",
) -> None:
    """Serves with several processes, which read their settings from the environment."""
    supervisor = WorkerSupervisor(_config(factory, factory=True, workers=workers), [listener])
    supervisor.on_ready = on_ready
    with TemporaryDirectory(prefix="tessera-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # each process reports the metrics of all
        supervisor.run()


def _config(app: FastAPI | str, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="app.server.draining:GracefulLoop",
        http=GracefulHttpProtocol,
        ws=GracefulWebSocketProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the application itself trusts the proxies in its settings
        timeout_graceful_shutdown=10,
        timeout_worker_healthcheck=HUNG_SECONDS,
        **options,
    )


def worker_app() -> FastAPI:
    """Creates the application of one of several processes, which exits with its supervisor."""
    parent = parent_process()
    exit_with_parent(parent.pid if parent else None)
    app = create_app()
    drain_on_sigterm(app)
    return app
