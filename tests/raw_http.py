"""HTTP as bytes: a server in the process of the test, and connections that send any bytes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from app.server.draining import GracefulHttpProtocol, GracefulWebSocketProtocol
from shared.problems import MEDIA_TYPE
from tests.kit import within

SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self) -> dict[str, Any]:
        """Checks that this is a problem document with a request id, and returns it."""
        assert self.headers["content-type"] == MEDIA_TYPE, self
        body: dict[str, Any] = self.json()
        assert body["status"] == self.status
        assert body["request_id"] == self.headers["x-request-id"]
        return body


@dataclass
class RawConnection:
    """A connection of a client; every wait has a bound."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int, address: str | None = None) -> Self:
        local = (address, 0) if address else None
        return cls(*await asyncio.open_connection("127.0.0.1", port, local_addr=local))

    async def send(self, *segments: bytes) -> Self:
        """Sends each of these in a separate segment, if the server reads in between."""
        for segment in segments:
            self.writer.write(segment)
            await self.writer.drain()
            await asyncio.sleep(0.01)
        return self

    async def answer(self, method: str = "GET") -> Answer:
        """Returns the next response."""
        async with within(SECONDS, "a response"):
            head = await self.reader.readuntil(b"\r\n\r\n")
            start, *lines = head.decode("latin-1").strip().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
            status = int(start.split(" ", 2)[1])
            if method == "HEAD" or status < 200 or status in {204, 304}:
                body = b""
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif "transfer-encoding" in headers:
                body = await self._chunks()
            else:
                body = await self.reader.read()
        return Answer(status, headers, body)

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()
        return body

    async def rest(self) -> bytes:
        """Returns all bytes until the server closes the connection."""
        rest = b""
        async with within(SECONDS, "the end of the connection"):
            with suppress(ConnectionError):
                while received := await self.reader.read(65_536):
                    rest += received
        return rest

    async def is_open(self) -> bool:
        """Returns whether the server still answers on this connection."""
        try:
            await self.send(b"GET /healthz HTTP/1.1\r\nHost: open\r\n\r\n")
            return (await self.answer()).status == 200
        except (ConnectionError, asyncio.IncompleteReadError):
            return False

    def close(self) -> None:
        self.writer.close()


@dataclass
class RawServer:
    """The server of `python -m app serve`, in this process."""

    port: int
    state: ServerState
    clients: list[RawConnection] = field(default_factory=list)

    async def connect(self, address: str | None = None) -> RawConnection:
        """Connects from a local address, such as 127.0.0.2."""
        self.clients.append(await RawConnection.open(self.port, address))
        return self.clients[-1]

    async def send(self, *segments: bytes) -> RawConnection:
        return await (await self.connect()).send(*segments)


@asynccontextmanager
async def raw_server(app: FastAPI, **options: Any) -> AsyncIterator[RawServer]:
    """Serves the application, which is started already, during the block."""
    config = uvicorn.Config(app, ws=GracefulWebSocketProtocol, log_config=None, **options)
    config.load()
    state = ServerState()
    listener = await asyncio.get_running_loop().create_server(
        lambda: GracefulHttpProtocol(config=config, server_state=state, app_state={}),
        "127.0.0.1",
    )
    server = RawServer(listener.sockets[0].getsockname()[1], state)
    try:
        yield server
    finally:
        listener.close()
        for client in server.clients:
            client.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.gather(*state.tasks, return_exceptions=True)
