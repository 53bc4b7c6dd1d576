"""One HTTP request is one HTTP request, for any bytes that a client sends."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI, Query, Request, WebSocket
from fastapi.responses import StreamingResponse
from httpx import AsyncClient
from pydantic import BaseModel, ConfigDict

from app.server.protocol import MAX_PIPELINED
from shared.settings import Settings
from tests.app_helpers import app_with, capture_log
from tests.kit import within
from tests.raw_http import RawServer, raw_server

probe = APIRouter(prefix="/probe", tags=["probe"])

HOST = b"Host: localhost\r\n"
VICTIM = b"GET /probe/echo?victim HTTP/1.1\r\nHost: localhost\r\nX-Victim: 1\r\n\r\n"
JSON = b"Content-Type: application/json\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + KEY
SMUGGLED = b"DELETE /probe/echo?smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


class AnyQuery(BaseModel):
    model_config = ConfigDict(extra="allow")


@probe.api_route("/echo", methods=["GET", "POST", "DELETE"])
async def echo(request: Request, _query: Annotated[AnyQuery, Query()]) -> dict[str, Any]:
    return {
        "method": request.method,
        "query": request.url.query,
        "body": (await request.body()).decode(),
        "headers": sorted(request.headers),
    }


@probe.get("/stream")
async def stream() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield "one\n"
        yield ""
        yield "two\n"

    return StreamingResponse(lines())


@probe.get("/nothing", status_code=204)
async def nothing() -> None: ...


@probe.websocket("/live")
async def live(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())


@probe.websocket("/refused")
async def refused(websocket: WebSocket) -> None:
    await websocket.close(reason="You may not listen")


@probe.websocket("/closed")
async def closed(websocket: WebSocket) -> None:
    await websocket.close()


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    async with app_with(settings.model_copy(update={"log_level": "info"}), probe) as running:
        yield running


@pytest.fixture
async def raw(app: FastAPI) -> AsyncIterator[RawServer]:
    async with raw_server(app) as running:
        yield running


def post(*headers: bytes, path: bytes = b"/probe/echo", version: bytes = b"1.1") -> bytes:
    return b"POST " + path + b" HTTP/" + version + b"\r\n" + HOST + b"".join(headers) + b"\r\n"


def chunks(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


LENGTH = b"Content-Length: %d\r\n" % len(SMUGGLED)
TOKENS = [
    "h2c",
    "websocket",
    "TLS/1.0, HTTP/1.1",
    "IRC/6.9",
    "anything",
    "h2c\r\nUpgrade: websocket",
]


FRAMINGS = [(LENGTH, SMUGGLED), (CHUNKED, chunks(SMUGGLED))]


@pytest.mark.parametrize("token", TOKENS)
async def test_the_body_of_a_request_that_offers_an_upgrade_is_its_body(
    raw: RawServer, token: str
) -> None:
    offer = b"Connection: Upgrade, x\r\nUpgrade: %b\r\n" % token.encode()
    for framing, body in FRAMINGS:
        head = post(offer, framing)
        for segments in (
            [head + body + VICTIM],
            [head, body + VICTIM],
            [head[:-1], head[-1:] + body[:1], body[1:], VICTIM],
        ):
            client = await raw.send(*segments)
            first, second = await client.answer(), await client.answer()
            assert (first.json()["method"], first.json()["body"]) == ("POST", SMUGGLED.decode())
            assert second.json()["query"] == "victim"
            assert await client.is_open()


async def test_many_offers_in_one_segment_are_as_many_requests(raw: RawServer) -> None:
    offer = b"GET /probe/echo HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    client = await raw.send(offer * 50 + VICTIM)
    for _ in range(50):
        assert (await client.answer()).json()["query"] == ""
    assert (await client.answer()).json()["query"] == "victim"


async def test_requests_are_answered_in_order_as_many_as_may_wait(raw: RawServer) -> None:
    client = await raw.send(VICTIM * 9_000)
    for _ in range(1 + MAX_PIPELINED):
        assert (await client.answer()).json()["query"] == "victim"
    assert (await client.answer()).problem()["status"] == 429
    assert await client.rest() == b""


async def test_clients_that_offer_h2c_lose_no_body(raw: RawServer, client: AsyncClient) -> None:
    token = client.headers["authorization"].encode()
    offer = b"Authorization: %b\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" % token
    item = b'{"title": "Tea", "price": 5}'
    length = b"Content-Length: %d\r\n" % len(item)
    connection = await raw.send(post(offer, JSON, length, path=b"/items") + item)
    assert (await connection.answer()).status == 201
    lines = b"Content-Type: application/jsonl\r\n"
    await connection.send(post(offer, lines, length, path=b"/items/import"), item)
    assert (await connection.answer()).json()["created"] == 1


HANDSHAKES = {
    "post": post(WEBSOCKET, LENGTH, path=b"/probe/live"),
    "body": post(WEBSOCKET, LENGTH, path=b"/probe/live").replace(b"POST", b"GET"),
    "chunks": post(WEBSOCKET, CHUNKED, path=b"/probe/live").replace(b"POST", b"GET"),
    "connection": post(b"Connection: keep-alive\r\nUpgrade: websocket\r\n", KEY, LENGTH),
    "1.0": post(WEBSOCKET, LENGTH, version=b"1.0").replace(b"POST", b"GET"),
}


async def test_what_is_no_handshake_is_a_request_with_its_body(raw: RawServer) -> None:
    for name, handshake in HANDSHAKES.items():
        body = chunks(SMUGGLED) if name == "chunks" else SMUGGLED
        client = await raw.send(handshake + body + VICTIM)
        expected = 404 if b"/probe/live" in handshake else 200
        assert (await client.answer()).status == expected, name
        if name == "1.0":
            assert await client.rest() == b""
        else:
            assert (await client.answer()).json()["query"] == "victim", name


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        (b"/probe/refused", 403, "You may not listen"),
        (b"/probe/closed", 403, "The websocket was not accepted"),
        (b"/probe/none", 404, "There is no websocket at /probe/none"),
    ],
)
async def test_a_refused_handshake_is_a_private_problem(
    raw: RawServer, path: bytes, status: int, detail: str
) -> None:
    handshake = b"GET " + path + b" HTTP/1.1\r\n" + HOST + WEBSOCKET + b"\r\n"
    client = await raw.send(handshake)
    refused = await client.answer()
    assert (refused.status, refused.problem()["detail"]) == (status, detail)
    assert refused.headers["cache-control"] == "private, no-store"
    assert refused.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", [b"/probe/refused", b"/probe/none"])
@pytest.mark.parametrize("apart", [False, True])
async def test_after_a_refused_handshake_nothing_is_a_request(
    raw: RawServer, path: bytes, apart: bool
) -> None:
    handshake = b"GET " + path + b" HTTP/1.1\r\n" + HOST + WEBSOCKET + b"\r\n"
    client = await raw.send(*([handshake, VICTIM] if apart else [handshake + VICTIM]))
    assert b"victim" not in await client.rest()


WRONG = {b"": 426, KEY.replace(b"13", b"7"): 426, KEY.replace(b"=", b""): 400}


@pytest.mark.parametrize("wrong", WRONG)
async def test_after_a_wrong_handshake_nothing_is_a_request(raw: RawServer, wrong: bytes) -> None:
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + wrong
    client = await raw.send(b"GET /probe/live HTTP/1.1\r\n" + HOST + offer + b"\r\n" + VICTIM)
    answer = await client.answer()
    assert answer.problem()["status"] == WRONG[wrong]
    assert ("sec-websocket-version" in answer.headers) == (answer.status == 426)
    assert await client.rest() == b""


async def test_a_handshake_waits_for_no_other_response(raw: RawServer) -> None:
    handshake = b"GET /probe/live HTTP/1.1\r\n" + HOST + WEBSOCKET + b"\r\n"
    client = await raw.send(VICTIM + handshake + VICTIM)
    answers = [await client.answer() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 404, 200]


async def test_a_websocket_opens_and_frames_before_it_does_end_it(raw: RawServer) -> None:
    handshake = b"GET /probe/live HTTP/1.1\r\n" + HOST + WEBSOCKET + b"\r\n"
    frame = b"\x81\x82\0\0\0\0hi"
    client = await raw.send(handshake)
    assert (await client.answer()).status == 101
    await client.send(frame)
    async with within(10, "the echo"):
        assert await client.reader.readexactly(4) == b"\x81\x02hi"
    early = await raw.send(handshake + frame)
    assert b"hi" not in await early.rest()


def get(line: bytes = b"GET /probe/echo HTTP/1.1", headers: bytes = HOST) -> bytes:
    return line + b"\r\n" + headers + b"\r\n"


def chunked(body: bytes) -> bytes:
    return post(CHUNKED) + body


REFUSED = {
    "length and chunks": (400, post(b"Content-Length: 5\r\n", CHUNKED) + b"0\r\n\r\n"),
    "chunks and length": (400, post(CHUNKED, b"Content-Length: 5\r\n") + b"0\r\n\r\n"),
    "two lengths": (400, post(b"Content-Length: 3\r\nContent-Length: 4\r\n") + b"abcd"),
    "twice a length": (400, post(b"Content-Length: 3\r\nContent-Length: 3\r\n") + b"abc"),
    "lengths in a list": (400, post(b"Content-Length: 3, 3\r\n") + b"abc"),
    "signed length": (400, post(b"Content-Length: +3\r\n") + b"abc"),
    "negative length": (400, post(b"Content-Length: -3\r\n") + b"abc"),
    "length with a space": (400, post(b"Content-Length: 3 0\r\n") + b"abc"),
    "empty length": (400, post(b"Content-Length: \r\n")),
    "hexadecimal length": (400, post(b"Content-Length: 0x3\r\n") + b"abc"),
    "endless length": (400, post(b"Content-Length: 99999999999999999999999\r\n")),
    "chunked twice": (400, post(b"Transfer-Encoding: chunked, chunked\r\n") + b"0\r\n\r\n"),
    "not chunked last": (400, post(b"Transfer-Encoding: chunked, gzip\r\n") + b"0\r\n\r\n"),
    "identity": (501, post(b"Transfer-Encoding: identity\r\n") + b"0\r\n\r\n"),
    "identity, then chunked": (501, post(b"Transfer-Encoding: identity\r\n", CHUNKED)),
    "gzip": (501, post(b"Transfer-Encoding: gzip, chunked\r\n") + b"0\r\n\r\n"),
    "nearly chunked": (501, post(b"Transfer-Encoding: xchunked\r\n") + b"0\r\n\r\n"),
    "chunked after a control": (400, post(b"Transfer-Encoding: \x0bchunked\r\n")),
    "space before the colon": (400, post(b"Transfer-Encoding : chunked\r\n") + b"0\r\n\r\n"),
    "chunks in HTTP/1.0": (400, post(CHUNKED, version=b"1.0") + b"0\r\n\r\n"),
    "folded header": (400, get(headers=HOST + b"X: a\r\n b\r\n")),
    "folded start": (400, get(headers=b" X: a\r\n" + HOST)),
    "bare LF": (400, b"GET /probe/echo HTTP/1.1\nHost: localhost\n\n"),
    "bare LF in a header": (400, get(headers=b"Host: localhost\nX: a\r\n")),
    "bare CR in a header": (400, get(headers=HOST + b"X: a\rY: b\r\n")),
    "NUL in a value": (400, get(headers=HOST + b"X: a\0b\r\n")),
    "NUL in a name": (400, get(headers=HOST + b"X\0: a\r\n")),
    "space in a name": (400, get(headers=HOST + b"X Y: a\r\n")),
    "no name": (400, get(headers=HOST + b": a\r\n")),
    "no colon": (400, get(headers=HOST + b"X\r\n")),
    "no host": (400, get(headers=b"X: a\r\n")),
    "two hosts": (400, get(headers=HOST + HOST)),
    "host that is none": (400, get(headers=b"Host: a/b\r\n")),
    "host with a bracket": (400, get(headers=b"Host: [\r\n")),
    "lower case method": (400, get(b"get /probe/echo HTTP/1.1")),
    "unknown method": (400, get(b"SMUGGLE /probe/echo HTTP/1.1")),
    "connect": (501, get(b"CONNECT localhost:80 HTTP/1.1", HOST + b"Content-Length: 9\r\n")),
    "fragment": (400, get(b"GET /probe/echo#x HTTP/1.1")),
    "no path": (400, get(b"OPTIONS * HTTP/1.1")),
    "URL without a host": (400, get(b"GET http:///probe/echo HTTP/1.1")),
    "other URL": (400, get(b"GET ftp://localhost/probe/echo HTTP/1.1")),
    "space in a path": (400, get(b"GET /probe/echo x HTTP/1.1")),
    "NUL in a path": (400, get(b"GET /probe/echo\0 HTTP/1.1")),
    "bytes in a path": (400, get(b"GET /probe/echo\xff HTTP/1.1")),
    "HTTP/0.9": (505, b"GET /probe/echo\r\n\r\n"),
    "HTTP/1.2": (400, get(b"GET /probe/echo HTTP/1.2")),
    "HTTP/2.0": (505, get(b"GET /probe/echo HTTP/2.0")),
    "preface of HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "chunk size of no number": (400, chunked(b"x\r\n")),
    "chunk size with a prefix": (400, chunked(b"0x3\r\nabc\r\n0\r\n\r\n")),
    "negative chunk size": (400, chunked(b"-3\r\nabc\r\n0\r\n\r\n")),
    "chunk size with a space": (400, chunked(b"3 \r\nabc\r\n0\r\n\r\n")),
    "endless chunk size": (400, chunked(b"fffffffffffffffff3\r\nabc\r\n0\r\n\r\n")),
    "chunk size before a bare LF": (400, chunked(b"3\nabc\r\n0\r\n\r\n")),
    "chunk that ends with a bare LF": (400, chunked(b"3\r\nabc\n0\r\n\r\n")),
    "chunk that does not end": (400, chunked(b"3\r\nabcd0\r\n\r\n")),
    "extension with a bare LF": (400, chunked(b"3;a\nabc\r\n0\r\n\r\n")),
    "extension with a bare CR": (400, chunked(b"3;a\rX\r\nabc\r\n0\r\n\r\n")),
    "extension with a NUL": (400, chunked(b"3;a\0\r\nabc\r\n0\r\n\r\n")),
    "length in a trailer": (400, chunked(b"0\r\nContent-Length: 5\r\n\r\n")),
    "encoding in a trailer": (400, chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n")),
}


@pytest.mark.parametrize("apart", [False, True])
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(
    raw: RawServer, apart: bool
) -> None:
    for name, (status, request) in REFUSED.items():
        segments = [VICTIM, request, SMUGGLED] if apart else [VICTIM + request + SMUGGLED]
        client = await raw.send(*segments)
        assert (await client.answer()).status == 200, name
        answer = await client.answer()
        assert answer.status == status, (name, answer)
        assert answer.problem()["detail"], name
        assert answer.headers["connection"] == "close", name
        assert await client.rest() == b"", name


async def test_a_refused_request_has_a_line_in_the_log_and_the_headers_of_any_response(
    raw: RawServer,
) -> None:
    lines = capture_log()
    client = await raw.send(get(headers=b"X-Request-ID: given-by-a-proxy\r\n"))
    headers = (await client.answer()).headers
    assert headers["x-request-id"] == "given-by-a-proxy"
    assert headers["x-content-type-options"] == "nosniff"
    assert "given-by-a-proxy" in lines.getvalue()
    assert "400" in lines.getvalue()


ACCEPTED = {
    "empty lines first": b"\r\n\r\n" + VICTIM,
    "URL": VICTIM.replace(b"/probe", b"http://localhost/probe"),
    "host with a port": VICTIM.replace(b"localhost", b"[::1]:8000"),
    "empty host": VICTIM.replace(b"localhost", b""),
    "trailing tab": VICTIM.replace(b"localhost", b"\tlocalhost\t"),
    "empty body": VICTIM.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"),
}


async def test_what_is_unusual_and_clear_is_served(raw: RawServer) -> None:
    for name, request in ACCEPTED.items():
        client = await raw.send(request * 2)
        for _ in range(2):
            answer = await client.answer()
            assert (answer.status, answer.json()["query"]) == (200, "victim"), name


async def test_extensions_of_chunks_and_trailers_are_no_part_of_a_request(
    raw: RawServer,
) -> None:
    trailer = b"X-Forwarded-For: 8.8.8.8\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
    body = b'2;name="value"\r\nab\r\n003\r\ncde\r\n0\r\n' + trailer + b"\r\n"
    client = await raw.send(chunked(body) + VICTIM)
    answer = (await client.answer()).json()
    assert answer["body"] == "abcde"
    assert answer["headers"] == ["host", "transfer-encoding"]
    assert (await client.answer()).json()["query"] == "victim"


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection(
    raw: RawServer, method: bytes
) -> None:
    client = await raw.send(method + b" /probe/stream HTTP/1.0\r\n\r\n" + VICTIM)
    answer = await client.answer(method.decode())
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"
    assert answer.body == (b"one\ntwo\n" if method == b"GET" else b"")
    assert await client.rest() == b""
    nothing = await raw.send(b"GET /probe/nothing HTTP/1.0\r\n\r\n")
    assert (await nothing.answer()).status == 204


async def test_a_body_is_asked_for_where_a_client_waits_to_be_asked(raw: RawServer) -> None:
    expect = post(b"Expect: 100-continue\r\nContent-Length: 3\r\n")
    client = await raw.send(expect)
    assert (await client.answer()).status == 100
    await client.send(b"abc" + VICTIM)
    assert (await client.answer()).json()["body"] == "abc"
    assert (await client.answer()).json()["query"] == "victim"
    old = await raw.send(expect.replace(b"1.1\r", b"1.0\r"), b"abc")
    assert (await old.answer()).json()["body"] == "abc"


@pytest.mark.parametrize("path", [b"/./metrics", b"//metrics", b"/docs/../metrics", b"/metrics;"])
async def test_a_path_is_what_was_sent(raw: RawServer, path: bytes) -> None:
    client = await raw.send(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (await client.answer()).problem()["status"] == 404


async def test_a_pipelined_body_may_arrive_after_the_response_before(raw: RawServer) -> None:
    for length in (10, 100_000):
        start = post(b"Content-Length: %d\r\n" % length)
        client = await raw.send(VICTIM + start + b"x" * 5)
        assert (await client.answer()).json()["query"] == "victim"
        await client.send(b"x" * (length - 5) + VICTIM)
        assert (await client.answer()).json()["body"] == "x" * length
        assert (await client.answer()).json()["query"] == "victim"
