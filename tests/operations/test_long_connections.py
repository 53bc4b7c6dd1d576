"""Websockets and streams of events on a real server: they outlive the deadline of a request, and
end when the process stops."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import httpx2
import pytest
from httpx2.websockets import WebSocketDisconnect

from shared.settings import Settings
from tests.app_helpers import assert_problem
from tests.kit import PASSWORD
from tests.serving import ROOT, environment, read_line, stop

pytestmark = pytest.mark.verify

REQUEST_TIMEOUT_SECONDS = 1.0
STOP_SECONDS = 8.0  # sooner than uvicorn cancels what does not end

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
PROGRAM = """
import asyncio, socket
from collections.abc import AsyncIterable
from typing import Annotated
from fastapi import APIRouter, WebSocket, routing
from fastapi.sse import EventSourceResponse, ServerSentEvent
from app.discovery import find_features
from app.main import create_app
from app.server import draining, serve
from shared.auth import Principal, requires
from shared.feature import Feature

routing._PING_INTERVAL = 0.3
draining.STALL_SECONDS = 0.3
router = APIRouter(prefix="/probe")
Self = Annotated[Principal, requires("users:self")]

@router.websocket("/echo")
async def echo(websocket: WebSocket, principal: Self) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        await websocket.send_text(message)

@router.websocket("/flood")
async def flood(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_bytes(b"x" * 65536)
    finally:
        print("ended", flush=True)

@router.get("/events", response_class=EventSourceResponse)
async def events(principal: Self) -> AsyncIterable[ServerSentEvent]:
    yield ServerSentEvent(data="begun")
    try:
        await asyncio.Event().wait()
    finally:
        print("ended", flush=True)

probe = Feature(name="probe", router=router)
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
app = create_app(features=[*find_features("users"), probe], run_tasks=False)
serve(app, listener, lambda: print(port, flush=True))
"""


@dataclass(frozen=True)
class Probed:
    process: "subprocess.Popen[bytes]"
    port: int
    client: httpx2.Client
    log: Path

    def lines(self) -> str:
        return self.log.read_text()


@pytest.fixture
def probed(settings: Settings, tmp_path: Path) -> Iterator[Probed]:
    variables = environment(
        {
            "database_url": settings.database_url or "",
            "secret_key": settings.secret(),
            "request_timeout": str(REQUEST_TIMEOUT_SECONDS),
            "log_format": "json",
        }
    )
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as process,
    ):
        try:
            line = read_line(process, "the port of the server")
            assert line, log.read_text()
            with httpx2.Client(base_url=f"http://127.0.0.1:{int(line)}", timeout=30) as client:
                body = {"email": "ada@example.com", "password": PASSWORD}
                client.post("/users", json=body).raise_for_status()
                form = {"username": body["email"], "password": PASSWORD, "grant_type": "password"}
                token = client.post("/auth/token", data=form).json()["access_token"]
                client.headers["Authorization"] = f"Bearer {token}"
                yield Probed(process, int(line), client, log)
        finally:
            stop(process)


def test_a_websocket_is_served_and_closes_when_the_process_stops(probed: Probed) -> None:
    with probed.client.websocket(f"ws://127.0.0.1:{probed.port}/probe/echo") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text(10) == "hello"
        probed.process.send_signal(signal.SIGTERM)
        with pytest.raises(WebSocketDisconnect) as closed:
            websocket.receive_text(STOP_SECONDS)
    assert closed.value.code == 1012
    assert probed.process.wait(STOP_SECONDS) == -signal.SIGTERM


def test_one_without_a_credential_is_refused(probed: Probed) -> None:
    response = httpx.get(f"http://127.0.0.1:{probed.port}/probe/echo", headers=HANDSHAKE)
    assert_problem(response, 401)


def test_a_stream_of_events_outlives_the_deadline_and_ends_when_the_process_stops(
    probed: Probed,
) -> None:
    with probed.client.stream("GET", "/probe/events") as response:
        lines = response.iter_lines()
        assert next(lines) == 'data: "begun"'
        pings = 0
        while pings < 5:  # at 0.3 s each, longer than the deadline of a request
            pings += next(lines) == ": ping"
        probed.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx2.RemoteProtocolError):
            list(lines)
    assert read_line(probed.process, "the end of the stream") == b"ended\n"
    assert probed.process.wait(STOP_SECONDS) == -signal.SIGTERM
    assert "Traceback" not in probed.lines()


def test_a_websocket_whose_client_accepts_nothing_is_ended(probed: Probed) -> None:
    lines = (f"{name}: {value}\r\n" for name, value in HANDSHAKE.items())
    with socket.create_connection(("127.0.0.1", probed.port), timeout=10) as connection:
        request = f"GET /probe/flood HTTP/1.1\r\nHost: x\r\n{''.join(lines)}\r\n"
        connection.sendall(request.encode())
        assert read_line(probed.process, "the end of the websocket") == b"ended\n"
    assert "Traceback" not in probed.lines()


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /users HTTP/1.1\r\nContent-Length: 2\r\n%s\r\n{}",
        b"GET /healthz HTTP/1.1\r\n%s\r\n",
        b"GET /healthz HTTP/1.1\r\n%s\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_request_that_asks_for_a_websocket_has_one_response(
    probed: Probed, request_: bytes
) -> None:
    upgrade = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    with socket.create_connection(("127.0.0.1", probed.port), timeout=10) as connection:
        connection.sendall(request_ % upgrade)
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.count(b"HTTP/1.1 ") == 1, received
    assert received.startswith(b"HTTP/1.1 4"), received
    assert "Traceback" not in probed.lines()
    assert httpx.get(f"http://127.0.0.1:{probed.port}/healthz").status_code == 200
