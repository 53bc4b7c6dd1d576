"""Bounds of what clients take by connecting and sending: time, memory, slots."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from fastapi import APIRouter, FastAPI, Request, Response

from app.server import connections, heads, protocol
from shared.settings import Settings
from tests.app_helpers import app_with
from tests.kit import eventually, within
from tests.raw_http import RawServer, raw_server

probe = APIRouter(prefix="/probe", tags=["probe"])

HOST = b"Host: localhost\r\n"
GET = b"GET /probe HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIMIT = 2
KEEP_ALIVE_SECONDS = 1  # where a test waits for it
MEGABYTE = 1_000_000
LARGE = b"x" * 20 * MEGABYTE  # more than the operating system takes from us for a client
GET_LARGE = GET.replace(b"/probe", b"/probe/large")


@probe.get("")
async def get() -> str:
    return "got"


@probe.post("")
async def post_(request: Request) -> int:
    return len(await request.body())


@probe.post("/paused", max_body_size=1 << 30)
async def paused(request: Request) -> int:
    """Begins to read its body when the test lets it."""
    request.app.state.begun.set()
    await request.app.state.gate.wait()
    return len(await request.body())


@probe.get("/large")
async def large() -> Response:
    return Response(LARGE)


@probe.post("/unread", max_body_size=1 << 30)
async def unread() -> str:
    return "answered"


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    update = {"max_concurrency": 2 * LIMIT}  # of which one client may have half
    async with app_with(settings.model_copy(update=update), probe) as running:
        running.state.begun, running.state.gate = asyncio.Event(), asyncio.Event()
        yield running


@pytest.fixture
def keep_alive() -> int:
    """Seconds; longer than a test takes on a busy machine."""
    return 60


@pytest.fixture
async def raw(app: FastAPI, keep_alive: int) -> AsyncIterator[RawServer]:
    async with raw_server(app, timeout_keep_alive=keep_alive) as running:
        yield running


def head(length: int, *headers: bytes, path: bytes = b"/probe") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1\r\n", HOST, *headers]
    return b"".join([*lines, b"Content-Length: %d\r\n\r\n" % length])


BODIES = {
    "nothing": (head(2), b"", b"xx"),
    "asked for": (head(2, b"Expect: 100-continue\r\n"), b"", b"xx"),
    "a byte": (head(2), b"x", b"x"),
    "70 kB of a megabyte": (head(MEGABYTE), b"x" * 70_000, b"x" * (MEGABYTE - 70_000)),
    "all but the last byte": (head(MEGABYTE), b"x" * (MEGABYTE - 1), b"x"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_request_whose_body_has_not_arrived_holds_no_slot(
    raw: RawServer, name: str
) -> None:
    start, part, rest = BODIES[name]
    waiting = [await raw.send(start, part) for _ in range(10 * LIMIT)]
    for client in waiting if name == "asked for" else ():
        assert (await client.answer()).status == 100
    for _ in range(3):
        assert (await (await raw.send(GET)).answer()).status == 200
    for client in waiting:
        await client.send(rest)
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"%d" % (len(part) + len(rest)))


async def test_bodies_that_wait_are_bounded_together(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "BODY_BUFFERS_BYTES", MEGABYTE)
    for _ in range(3):
        await raw.send(head(MEGABYTE), b"x" * 900_000)
    full = await raw.send(head(MEGABYTE), b"x" * 900_000)
    await eventually(lambda: len(raw.state.tasks) == LIMIT, "requests that have begun")
    assert (await full.answer()).status == 429


async def test_a_long_body_is_read_while_it_arrives(raw: RawServer, app: FastAPI) -> None:
    client = await raw.send(head(3 * MEGABYTE, path=b"/probe/paused"), b"x" * MEGABYTE)
    async with within(10, "the request's begin"):
        await app.state.begun.wait()
    app.state.gate.set()
    await client.send(b"x" * MEGABYTE, b"x" * MEGABYTE)
    assert (await client.answer()).body == b"%d" % (3 * MEGABYTE)


async def test_a_body_of_small_chunks_costs_what_one_of_large_chunks_does(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = protocol.HttpProtocol._all

    def counted(connection: protocol.HttpProtocol) -> list[protocol.HttpProtocol]:
        nonlocal looks
        looks += 1
        return look(connection)

    monkeypatch.setattr(protocol.HttpProtocol, "_all", counted)
    chunks = b"1\r\nx\r\n" * 200_000
    start = b"POST /probe HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    client = await raw.send(start, chunks, b"0\r\n\r\n")
    assert (await client.answer()).body == b"200000"
    assert looks < 1_000


@pytest.mark.parametrize("keep_alive", [KEEP_ALIVE_SECONDS])
async def test_a_client_that_does_not_take_a_response_is_dropped(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "CLOSE_SECONDS", 0.3)
    await raw.send(GET)
    await eventually(lambda: raw.state.connections, "the connection")
    (connection,) = raw.state.connections
    assert isinstance(connection, protocol.HttpProtocol)
    connection.transport.write(LARGE)
    await eventually(lambda: not raw.state.connections, "the end of the connection", 30)


@pytest.mark.parametrize("keep_alive", [KEEP_ALIVE_SECONDS])
async def test_a_connection_that_sends_nothing_is_closed(raw: RawServer) -> None:
    silent, lines = await raw.connect(), await raw.connect()
    for _ in range(5):  # empty lines begin no request
        await lines.send(b"\r\n")
    assert await silent.rest() == await lines.rest() == b""


@pytest.mark.parametrize("sent", [b"G", b"GET /probe HTTP/1.1\r\n", GET[:-1], GET + GET[:-2]])
async def test_a_head_that_does_not_end_is_given_up(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    client = await raw.send(sent)
    if sent.startswith(GET):
        assert (await client.answer()).status == 200
    answer = await client.answer()
    assert answer.status == 408
    assert "within 0.3 s" in answer.problem()["detail"]
    assert await client.rest() == b""


async def test_a_head_that_is_sent_byte_by_byte_is_given_up(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    client = await raw.send(GET[:-2] + b"X: ")
    answered = asyncio.create_task(client.answer())
    while not answered.done():
        await client.send(b"x")
    assert answered.result().status == 408


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_sent_too_slowly_is_given_up(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.3)
    start = head(MEGABYTE)
    if chunked:
        start = start[: start.index(b"Content-Length")] + b"Transfer-Encoding: chunked\r\n\r\n"
    client = await raw.send(start)
    answered = asyncio.create_task(client.answer())
    while not answered.done():
        await client.send(b"1;extension=long\r\nx\r\n" if chunked else b"x")
    answer = answered.result()
    assert answer.status == 408
    assert "1,000 bytes a second" in answer.problem()["detail"]
    assert await client.rest() == b""


async def test_a_body_that_stops_after_its_request_has_begun_is_given_up(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch, app: FastAPI
) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.3)
    app.state.gate.set()
    client = await raw.send(head(3 * MEGABYTE, path=b"/probe/paused"), b"x" * 2 * MEGABYTE)
    assert (await client.answer()).status == 408
    await eventually(lambda: not raw.state.tasks, "the end of the request")


async def test_a_body_that_we_do_not_read_yet_is_not_too_slow(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch, app: FastAPI
) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.3)
    client = await raw.send(head(3 * MEGABYTE, path=b"/probe/paused"), b"x" * 2 * MEGABYTE)
    await app.state.begun.wait()
    await asyncio.sleep(1)
    app.state.gate.set()
    await client.send(b"x" * MEGABYTE)
    assert (await client.answer()).body == b"%d" % (3 * MEGABYTE)


TOO_MUCH = {
    "a URL": (414, [b"GET /", b"x" * heads.MAX_TARGET_BYTES]),
    "a query, in parts": (414, [b"GET /probe?", *[b"x" * 1000] * 20]),
    "many headers": (431, [GET[:-2], b"X: y\r\n" * heads.MAX_FIELDS, b"\r\n"]),
    "a long header": (431, [GET[:-2] + b"X: " + b"x" * heads.MAX_FIELD_BYTES + b"\r\n\r\n"]),
    "an endless header": (431, [GET[:-2] + b"X: ", *[b"x" * 100_000] * 40]),
    "an endless name": (431, [GET[:-2], *[b"x" * 100_000] * 40]),
    "endless empty lines": (431, [b"\r\n" * 50_000] * 40),
    "an endless trailer": (
        431,
        [head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"0\r\nX: "]
        + [b"x" * 100_000] * 40,
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_a_head_has_bounds(raw: RawServer, name: str) -> None:
    status, segments = TOO_MUCH[name]
    client = await raw.send(GET)
    assert (await client.answer()).status == 200
    tracemalloc.start()
    sending = asyncio.create_task(client.send(*segments))
    answer = await client.answer()
    assert tracemalloc.get_traced_memory()[1] < 5 * MEGABYTE
    tracemalloc.stop()
    assert answer.status == status
    assert answer.problem()["title"] in {"URI Too Long", "Request Header Fields Too Large"}
    assert await client.rest() == b""
    sending.cancel()


async def test_what_is_within_the_bounds_is_served(raw: RawServer) -> None:
    query = b"x" * (heads.MAX_TARGET_BYTES - len("/probe?"))
    fields = b"".join(b"X-%d: %b\r\n" % (n, b"x" * 600) for n in range(heads.MAX_FIELDS - 1))
    request = b"GET /probe?" + query + b" HTTP/1.1\r\n" + HOST + fields + b"\r\n"
    client = await raw.send(request, request[:40_000], request[40_000:])
    for _ in range(2):
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("length", [3 * MEGABYTE, 30 * MEGABYTE])
async def test_a_response_before_the_end_of_the_body_arrives(raw: RawServer, length: int) -> None:
    for path, status in ((b"/probe", 413), (b"/probe/unread", 200)):
        client = await raw.send(head(length, path=path))
        sending = asyncio.create_task(client.send(*[b"x" * MEGABYTE] * (length // MEGABYTE)))
        assert (await client.answer()).status == status
        await asyncio.wait([sending])
        assert await client.is_open()


@pytest.mark.parametrize("keep_alive", [KEEP_ALIVE_SECONDS])
async def test_the_rest_of_an_answered_body_is_not_awaited_for_long(raw: RawServer) -> None:
    client = await raw.send(head(1 << 30, path=b"/probe/unread"), b"x" * MEGABYTE)
    assert (await client.answer()).status == 200
    ended = asyncio.create_task(client.rest())
    async with within(20, "the end of the connection"):
        while not ended.done():
            try:
                await client.send(b"x" * 1_000)
            except ConnectionError:
                break
    await eventually(lambda: not raw.state.connections, "the end of the connection")


async def test_who_has_most_connections_loses_them_first(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(connections, "CLOSED_CONNECTIONS", 2)
    mine = [await raw.connect("127.0.0.2") for _ in range(3)]
    for client in mine:
        await client.send(head(2), b"x")
    theirs = [await raw.send(head(2), b"x") for _ in range(60)]
    await eventually(lambda: len(raw.state.connections) <= 20, "room")
    assert await theirs[0].rest() == b""
    for client in (*mine, theirs[-1]):
        await client.send(b"x")
        assert (await client.answer()).status == 200


async def test_a_request_in_progress_is_never_closed_for_room(
    raw: RawServer, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    client = await raw.send(head(1, path=b"/probe/paused"), b"x")
    await app.state.begun.wait()
    for _ in range(20):
        await raw.connect()
    app.state.gate.set()
    assert (await client.answer()).body == b"1"


async def test_a_pipelining_client_that_leaves_ends_its_first_request(
    raw: RawServer, app: FastAPI
) -> None:
    long = head(3 * MEGABYTE, path=b"/probe/paused")
    client = await raw.send(long, b"x" * 3 * MEGABYTE + GET)
    await app.state.begun.wait()
    client.writer.transport.abort()
    app.state.gate.set()
    await eventually(lambda: not raw.state.tasks, "the end of the request")


@pytest.mark.parametrize("together", [True, False])
async def test_a_client_that_reads_no_response_holds_no_slot(
    raw: RawServer, together: bool
) -> None:
    clients = []
    for _ in range(3 * LIMIT):
        clients.append(await raw.connect())
        await clients[-1].send(*([GET_LARGE + GET] if together else [GET_LARGE, GET]))
    assert (await (await raw.send(GET)).answer()).status == 200
    for client in clients:
        assert (await client.answer()).body == LARGE
        assert (await client.answer()).status == 200


async def test_responses_that_nobody_reads_are_bounded(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_UNSENT_BYTES", 2 * len(LARGE))
    mine = await (await raw.connect("127.0.0.2")).send(GET_LARGE)
    for _ in range(5):
        await raw.send(GET_LARGE)
    await eventually(lambda: len(raw.state.connections) <= 3, "the end of the others")
    assert (await mine.answer()).body == LARGE


@pytest.mark.parametrize("keep_alive", [KEEP_ALIVE_SECONDS])
async def test_a_head_that_began_before_the_last_response_ended_is_not_idle(
    raw: RawServer, app: FastAPI
) -> None:
    start = head(1, path=b"/probe/paused")
    client = await raw.send(GET + start[:20])
    assert (await client.answer()).status == 200
    await client.send(start[20:] + b"x")
    await app.state.begun.wait()
    await asyncio.sleep(1.5 * KEEP_ALIVE_SECONDS)
    app.state.gate.set()
    assert (await client.answer()).body == b"1"


async def test_no_handshake_overtakes_a_response(raw: RawServer) -> None:
    handshake = GET[:-2] + (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    client = await raw.send(GET_LARGE, GET, handshake)
    assert (await client.answer()).body == LARGE
    for _ in range(2):
        assert (await client.answer()).body == b'"got"'
