"""The HTTP server: a listening socket, and uvicorn in one process or several.

Drain: a process that stops first accepts and serves the connections in the listen backlog, since a
proxy that has sent a POST on one may not send it again.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from app.main import create_app
from shared.bounds import IDLE_SECONDS
from shared.settings import ConfigurationError
from shared.supervision import exit_with_parent

START_TIMEOUT_SECONDS = 60
HUNG_SECONDS = 10  # a worker that does not answer the supervisor for so long is replaced
LINGER_SECONDS = 1.0


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to the address and that child processes inherit.

    Raises:
        ConfigurationError: the port is taken, or we may not use it.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ConfigurationError(
            f"port {port} on {host} cannot be used ({error.strerror}); choose another with PORT"
        ) from None
    listener.set_inheritable(True)
    return listener


OnReady = Callable[[], None]


class Connection(HttpToolsProtocol):
    """An HTTP connection that lingers when the process stops, and aborts when the client stalls.

    It closes `LINGER_SECONDS` after the process began to stop, as a request may have been sent on
    it that we have not read yet. It aborts when the client has accepted no bytes of the response
    for `IDLE_SECONDS`.
    """

    stalled: asyncio.TimerHandle

    def shutdown(self) -> None:
        self.loop.call_later(LINGER_SECONDS, super().shutdown)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        self.stalled.cancel()
        super().resume_writing()

    def _watch(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self.stalled = self.loop.call_later(IDLE_SECONDS, self._abort_if_stalled, unsent)

    def _abort_if_stalled(self, unsent: int) -> None:
        if self.transport.get_write_buffer_size() < unsent:
            self._watch()
        else:
            self.transport.abort()


class LastCall:
    """A listening asyncio server that accepts the listen backlog before it closes.

    The operating system would reset these connections.
    """

    def __init__(
        self,
        server: asyncio.AbstractServer,
        listener: socket.socket,
        connect: Callable[[], Connection],
    ) -> None:
        self.server, self.listener, self.connect = server, listener, connect
        self.accepting: list[asyncio.Task[Any]] = []

    def close(self) -> None:
        waiting = _accept_all(self.listener)
        self.server.close()
        loop = self.server.get_loop()
        for each in waiting:
            accepted = loop.connect_accepted_socket(self._connect_late, each)
            self.accepting.append(loop.create_task(accepted))

    def _connect_late(self) -> Connection:
        connection = self.connect()
        connection.loop.call_later(LINGER_SECONDS, connection.shutdown)
        return connection

    async def wait_closed(self) -> None:
        await asyncio.gather(*self.accepting, return_exceptions=True)
        await self.server.wait_closed()


def _accept_all(listener: socket.socket) -> list[socket.socket]:
    accepted = []
    with suppress(BlockingIOError):
        while True:
            accepted.append(listener.accept()[0])
    return accepted


class Loop(uvloop.Loop):
    """A uvloop event loop whose servers drain the listen backlog (`LastCall`).

    Before the server starts, it takes all existing objects out of garbage collection.
    """

    async def create_server(self, connect: Any, *, sock: Any, **options: Any) -> Any:  # type: ignore[override]
        gc.collect()
        gc.freeze()  # modules, models and routes live on: to scan them finds no garbage
        server = await super().create_server(connect, sock=sock, **options)
        return LastCall(server, sock, connect)


class Server(uvicorn.Server):
    """A uvicorn server that calls `on_ready` once it can answer."""

    app: FastAPI
    on_ready: OnReady

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            drain_on_sigterm(self.app)
            self.on_ready()


class Workers(Multiprocess):
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
    server = Server(_config(app))
    server.app, server.on_ready = app, on_ready
    server.run(sockets=[listener])


def serve_with_workers(
    listener: socket.socket, workers: int, on_ready: OnReady, factory: str = "app.server:worker"
) -> None:
    """Serves with several processes, which read their settings from the environment."""
    supervisor = Workers(_config(factory, factory=True, workers=workers), [listener])
    supervisor.on_ready = on_ready
    with TemporaryDirectory(prefix="tessera-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # each process reports the metrics of all
        supervisor.run()


def _config(app: FastAPI | str, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="app.server:Loop",
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the application itself trusts the proxies in its settings
        timeout_graceful_shutdown=10,
        timeout_worker_healthcheck=HUNG_SECONDS,
        **options,
    )


def worker() -> FastAPI:
    """Creates the application of one of several processes, which exits with its supervisor."""
    parent = parent_process()
    exit_with_parent(parent.pid if parent else None)
    app = create_app()
    drain_on_sigterm(app)
    return app


def drain_on_sigterm(app: FastAPI) -> None:
    """Delays the stop after SIGTERM, so that load balancers can take this process out of rotation.

    From SIGTERM on, `/readyz` answers 503; all other requests are served for another
    `APP_SHUTDOWN_DELAY` seconds. Then the previous handler, uvicorn's, gets the signal.
    """
    loop = asyncio.get_running_loop()
    stop = signal.getsignal(signal.SIGTERM)
    delay: float = app.state.settings.shutdown_delay

    def drain(number: int, frame: FrameType | None) -> None:
        app.state.draining = True
        if callable(stop):
            loop.call_soon_threadsafe(loop.call_later, delay, stop, number, frame)

    signal.signal(signal.SIGTERM, drain)
