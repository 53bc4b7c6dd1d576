"""Graceful stop: finishes the requests of a process before it ends.

Drain: a process that stops first accepts and serves the connections in the listen backlog, since a
proxy that has sent a POST on one may not send it again.
"""

import asyncio
import gc
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvloop
from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.routing import is_event_stream
from app.server.protocol import HttpProtocol
from shared.state import state_of
from shared.web.deadlines import MIN_BYTES_PER_SECOND, STALL_SECONDS

LINGER_SECONDS = 1.0


class AbortOnStall(asyncio.Protocol):
    """Aborts a connection whose client, over `STALL_SECONDS`, accepts less than
    `MIN_BYTES_PER_SECOND`."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    stalled: asyncio.TimerHandle

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        self.stalled.cancel()
        super().resume_writing()

    def _watch(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self.stalled = self.loop.call_later(STALL_SECONDS, self._abort_if_stalled, unsent)

    def _abort_if_stalled(self, unsent: int) -> None:
        accepted = unsent - self.transport.get_write_buffer_size()
        if accepted > STALL_SECONDS * MIN_BYTES_PER_SECOND:
            self._watch()
        else:
            self.transport.abort()


class GracefulHttpProtocol(AbortOnStall, HttpProtocol):
    """An HTTP connection that lingers when the process stops.

    It closes `LINGER_SECONDS` after the process began to stop, as a request may have been sent on
    it that we have not read yet. A stream of events has no end to wait for: it closes at once, and
    its client connects to another process.
    """

    def shutdown(self) -> None:
        self._close_event_stream()
        self.loop.call_later(LINGER_SECONDS, self._shutdown)

    def _shutdown(self) -> None:
        self._close_event_stream()
        super().shutdown()

    def _close_event_stream(self) -> None:
        if self.cycle and is_event_stream(self.cycle.scope):
            self.transport.close()


class GracefulWebSocketProtocol(AbortOnStall, WebSocketsSansIOProtocol):
    """A websocket, which closes with 1012 (service restart) when the process stops."""

    def data_received(self, data: bytes) -> None:
        # A client may send nothing more before its handshake is answered (RFC 6455, section 4.1).
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.close()
        else:
            super().data_received(data)


class DrainingServer:
    """A listening asyncio server that accepts the listen backlog before it closes.

    The operating system would reset these connections.
    """

    def __init__(
        self,
        server: asyncio.AbstractServer,
        listener: socket.socket,
        connect: Callable[[], GracefulHttpProtocol],
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

    def _connect_late(self) -> GracefulHttpProtocol:
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


class GracefulLoop(uvloop.Loop):
    """A uvloop event loop whose servers drain the listen backlog (`DrainingServer`).

    Before the server starts, it takes all existing objects out of garbage collection.
    """

    async def create_server(self, connect: Any, *, sock: Any, **options: Any) -> Any:  # type: ignore[override]
        gc.collect()
        gc.freeze()  # modules, models and routes live on: to scan them finds no garbage
        server = await super().create_server(connect, sock=sock, **options)
        return DrainingServer(server, sock, connect)


def drain_on_sigterm(app: FastAPI) -> None:
    """Delays the stop after SIGTERM, so that load balancers can take this process out of rotation.

    From SIGTERM on, `/readyz` answers 503; all other requests are served for another
    `APP_SHUTDOWN_DELAY` seconds. Then the previous handler, uvicorn's, gets the signal.
    """
    loop = asyncio.get_running_loop()
    stop = signal.getsignal(signal.SIGTERM)
    delay: float = state_of(app).settings.shutdown_delay

    def drain(number: int, frame: FrameType | None) -> None:
        state_of(app).is_stopping = True
        if callable(stop):
            loop.call_soon_threadsafe(loop.call_later, delay, stop, number, frame)

    signal.signal(signal.SIGTERM, drain)
