"""Requests time out, and are shed beyond the concurrency limit."""

import asyncio
import select
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from httpx import AsyncClient, Response
from sqlalchemy import text

from shared.db import ReadSession, database_of
from shared.problems import Unavailable
from shared.settings import Settings
from shared.slots import StreamSlots
from shared.web import deadlines, uploads
from shared.web.uploads import Upload
from tests.app_helpers import app_with, assert_problem, count_shed_requests
from tests.kit import connect, eventually, free_port, is_ready, within
from tests.serving import ROOT, environment, read_line

SECONDS = 1.0
probe = APIRouter(prefix="/probe", tags=["probe"])


@probe.get("/asleep")
async def asleep(session: ReadSession) -> None:
    await session.fetch(text("SELECT pg_sleep(60)"))


@probe.get("/interrupted")
async def interrupted() -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        raise Unavailable("It was interrupted") from None


@probe.post("/slow-and-may-be")
async def slow(request: Request) -> None:
    async for _ in request.stream():
        deadlines.extend_deadline(request.state.deadline)
    await asyncio.sleep(2 * SECONDS)


@probe.post("/slow-before-the-body")
async def slow_before() -> None:
    await asyncio.sleep(60)


@probe.get("/stream")
async def stream() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield "begun\n"
        await asyncio.sleep(2 * SECONDS)
        yield "ended\n"

    return StreamingResponse(lines())


@probe.get("/endless")
async def endless() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        while True:
            yield "more\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(lines())


@probe.put("/upload", max_body_size=1 << 50)
async def put_upload(body: Upload) -> int:
    return sum([len(piece) async for piece in body])


@probe.get("/held")
async def held(request: Request) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield "begun\n"
        request.app.state.held.release()
        await request.app.state.gate.wait()

    return StreamingResponse(lines())


@probe.get("/events", response_class=EventSourceResponse)
async def events(request: Request) -> AsyncIterator[str]:
    yield "begun"
    request.app.state.held.release()
    await request.app.state.gate.wait()


@probe.get("/deadline")
async def deadline(request: Request) -> float | None:
    when: float | None = request.state.deadline.when()
    return when


UNREAD = """
import asyncio, sys
from types import SimpleNamespace
from typing import Annotated
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from app import server
from app.server import draining
from shared.state import AppState

app = FastAPI()

async def connection():
    yield
    print("given back", flush=True)

async def endless():
    while True:
        yield b"x" * 65_536
        await asyncio.sleep(0)

@app.get("/")
async def export(_: Annotated[None, Depends(connection)]) -> StreamingResponse:
    return StreamingResponse(endless())

draining.STALL_SECONDS = 0.2
app.state = AppState()
app.state.settings = SimpleNamespace(shutdown_delay=0)
server.serve(app, server.listen("127.0.0.1", int(sys.argv[1])), lambda: print("ready", flush=True))
"""


@pytest.fixture
def request_timeout() -> float:
    return SECONDS


@pytest.fixture
def settings(settings: Settings, request_timeout: float | None) -> Settings:
    update = {
        "request_timeout": request_timeout,
        "stream_timeout": 3 * SECONDS,
        "max_concurrency": 2,
        "database_pool_size": 1,
    }
    return settings.model_copy(update=update)


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    async with app_with(settings, probe) as running:
        running.state.held, running.state.gate = asyncio.Semaphore(0), asyncio.Event()
        yield running


@pytest.fixture
async def another(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client with another address."""
    async with connect(app, "192.0.2.1") as client:
        yield client


def unavailable(response: Response) -> str:
    assert response.headers["retry-after"] == "1"
    return str(assert_problem(response, 503)["detail"])


async def test_an_answer_that_is_late_is_an_answer(anonymous: AsyncClient) -> None:
    assert unavailable(await anonymous.get("/probe/interrupted")) == "It was interrupted"


async def test_a_request_without_an_answer_is_given_up(anonymous: AsyncClient) -> None:
    for _ in range(3):  # each gives back the only connection
        assert "within 1 s" in unavailable(await anonymous.get("/probe/asleep"))


async def test_a_response_that_has_begun_has_no_deadline(anonymous: AsyncClient) -> None:
    assert (await anonymous.get("/probe/stream")).text == "begun\nended\n"


async def test_a_body_lifts_the_deadline_when_it_is_looked_at(anonymous: AsyncClient) -> None:
    assert (await anonymous.post("/probe/slow-and-may-be")).status_code == 200
    assert "no answer" in unavailable(await anonymous.post("/probe/slow-before-the-body"))


async def test_a_stream_that_stands_still_is_given_up(
    anonymous: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "STREAM_SECONDS", 0.2)
    detail = unavailable(await anonymous.post("/probe/slow-and-may-be"))
    assert "no answer" in detail
    assert "within 1 s" not in detail
    assert (await anonymous.get("/probe/held")).text == "begun\n"  # and is cut off


async def test_a_download_has_a_longest_duration(anonymous: AsyncClient) -> None:
    async with within(30, "the end of the download"):
        assert (await anonymous.get("/probe/endless")).text.startswith("more\n")  # and is cut off


async def pieces(size: int, seconds: float) -> AsyncIterator[bytes]:
    while True:
        yield b"x" * size
        await asyncio.sleep(seconds)


async def test_an_upload_has_a_longest_duration(anonymous: AsyncClient) -> None:
    async with within(30, "the end of the upload"):
        refused = await anonymous.put("/probe/upload", content=pieces(10_000, 0.01))
    assert assert_problem(refused, 408)["detail"] == "An upload may take 3 s"
    assert refused.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("slots", "piece", "least"), [(2, 1, "1,000"), (1, 1, "10,000"), (1, 100, "10,000")]
)
async def test_an_upload_that_trickles_is_ended(
    app: FastAPI,
    anonymous: AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    slots: int,
    piece: int,
    least: str,
) -> None:
    """And one that is ten times as fast, while slots are scarce."""
    monkeypatch.setattr(uploads, "STALL_SECONDS", 0.3)
    database_of(app).upload_slots = StreamSlots(slots, 0.2)
    for _ in range(2):  # each frees the only slot
        refused = await anonymous.put("/probe/upload", content=pieces(piece, 0.05))
        assert f"Less than {least} bytes a second" in assert_problem(refused, 408)["detail"]

    async def enough() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1_000
            await asyncio.sleep(0.05)

    assert (await anonymous.put("/probe/upload", content=enough())).json() == 20_000


@pytest.mark.parametrize("request_timeout", [None])
async def test_without_a_timeout_a_request_has_no_deadline(
    anonymous: AsyncClient, request_timeout: None
) -> None:
    assert (await anonymous.get("/probe/deadline")).json() is request_timeout


@pytest.mark.parametrize("request_timeout", [30.0])
async def test_more_than_can_be_served_is_refused_at_once(
    anonymous: AsyncClient, another: AsyncClient, app: FastAPI
) -> None:
    holders = [asyncio.create_task(each.get("/probe/held")) for each in (anonymous, another)]
    async with within(30, "two requests that are held"):
        for _ in holders:
            await app.state.held.acquire()
    before = count_shed_requests("concurrency")
    refused = await anonymous.get("/items")
    assert "busy" in unavailable(refused)
    assert count_shed_requests("concurrency") == before + 1
    await eventually(lambda: is_ready(anonymous), "readiness", 30)
    app.state.gate.set()
    async with within(30, "the answers of those that were held"):
        assert [(await holder).status_code for holder in holders] == [200, 200]
    assert (await anonymous.get("/items")).status_code == 401


@pytest.mark.parametrize("request_timeout", [30.0])
async def test_streams_of_events_leave_others_their_slots(
    anonymous: AsyncClient, another: AsyncClient, app: FastAPI
) -> None:
    streams = [asyncio.create_task(each.get("/probe/events")) for each in (anonymous, another)]
    async with within(30, "two streams"):
        for _ in streams:
            await app.state.held.acquire()
    assert (await anonymous.get("/items")).status_code == 401
    app.state.gate.set()
    async with within(30, "the ends of the streams"):
        assert [(await stream).status_code for stream in streams] == [200, 200]


@pytest.mark.parametrize("bytes_taken", [0, 10], ids=["nothing", "little"])
def test_an_answer_that_nobody_takes_is_ended(bytes_taken: int) -> None:
    port = free_port()
    command = [sys.executable, "-c", UNREAD, str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment({}), stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout
            assert read_line(process, "the start of the server") == b"ready\n"
            with socket.create_connection(("127.0.0.1", port), timeout=30) as reader:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                reader.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                for _ in range(3_000 if bytes_taken else 0):
                    if select.select([process.stdout], [], [], 0.01)[0]:
                        break
                    with suppress(ConnectionError):
                        reader.recv(bytes_taken)
                assert read_line(process, "the end of the answer") == b"given back\n"
        finally:
            process.kill()
