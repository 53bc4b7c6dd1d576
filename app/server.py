"""The HTTP server: a listening socket, uvicorn in one process or several, a word when ready.

A process that stops hears out everybody whose connection the kernel has made: a proxy that has
sent a POST on one may not send it again.
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
HUNG_SECONDS = 10  # a worker process that does not answer its first one for so long is replaced
LINGER_SECONDS = 1.0


def listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        ConfigurationError: the port is taken or may not be used.
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
    """A connection that is closed a while after the process began to stop, and not at once:
    what was sent on it may not have been read yet. And one that does not wait for ever for a
    client that takes nothing of its answer."""

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
    """A listening server of asyncio that, before it closes, accepts who waits to be accepted:
    the kernel would reset them."""

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
    """uvloop, whose servers give everybody a last call, and find the process ready."""

    async def create_server(self, connect: Any, *, sock: Any, **options: Any) -> Any:  # type: ignore[override]
        gc.collect()
        gc.freeze()  # modules, models and routes stay: to walk them again and again finds nothing
        server = await super().create_server(connect, sock=sock, **options)
        return LastCall(server, sock, connect)


class Server(uvicorn.Server):
    """A uvicorn server that says when it is ready to answer."""

    app: FastAPI
    on_ready: OnReady

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            drain_on_sigterm(self.app)
            self.on_ready()


class Workers(Multiprocess):
    """Several processes that answer on one socket; one that dies is replaced, and SIGHUP replaces
    each in turn."""

    on_ready: OnReady

    def init_processes(self) -> None:
        super().init_processes()
        if all(process.wait_until_ready(START_TIMEOUT_SECONDS) for process in self.processes):
            self.on_ready()

    def restart_all(self) -> None:
        # uvicorn gives a new process no more time to start than an old one has to answer.
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
        # As long as one process has it, the kernel goes on making connections for all of them.
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def serve(app: FastAPI, listener: socket.socket, on_ready: OnReady) -> None:
    """Serves until SIGINT or SIGTERM; requests under way are finished first."""
    server = Server(_config(app))
    server.app, server.on_ready = app, on_ready
    server.run(sockets=[listener])


def serve_with_workers(
    listener: socket.socket, workers: int, on_ready: OnReady, factory: str = "app.server:worker"
) -> None:
    """Serves with so many processes, whose settings come from the environment."""
    supervisor = Workers(_config(factory, factory=True, workers=workers), [listener])
    supervisor.on_ready = on_ready
    with TemporaryDirectory(prefix="tessera-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # each process answers for all of them
        supervisor.run()


def _config(app: FastAPI | str, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="app.server:Loop",
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the application believes the proxies that its settings name
        timeout_graceful_shutdown=10,
        timeout_worker_healthcheck=HUNG_SECONDS,
        **options,
    )


def worker() -> FastAPI:
    """The application of one process of several, which must not outlive the first."""
    parent = parent_process()
    exit_with_parent(parent.pid if parent else None)
    app = create_app()
    drain_on_sigterm(app)
    return app


def drain_on_sigterm(app: FastAPI) -> None:
    """From SIGTERM on `/readyz` answers 503, and everything else is served for as long as
    `APP_SHUTDOWN_DELAY` says: so long load balancers may take to look elsewhere. Then the
    handler that was there before, uvicorn's, gets the signal."""
    loop = asyncio.get_running_loop()
    stop = signal.getsignal(signal.SIGTERM)
    delay: float = app.state.settings.shutdown_delay

    def drain(number: int, frame: FrameType | None) -> None:
        app.state.draining = True
        if callable(stop):
            loop.call_soon_threadsafe(loop.call_later, delay, stop, number, frame)

    signal.signal(signal.SIGTERM, drain)
