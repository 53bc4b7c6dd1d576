"""Websockets: who may open one, how it ends, and how many there may be."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from httpx import AsyncClient
from httpx2.websockets import WebSocketDisconnect, WebSocketUpgradeError
from sqlalchemy import text

from shared.auth import Principal, requires
from shared.db import ReadSession, WriteSession
from shared.problems import Conflict
from shared.settings import Settings
from tests.app_helpers import app_with
from tests.kit import SignUp, open_websocket

probe = APIRouter(prefix="/probe", tags=["probe"])

Self = Annotated[Principal, requires("users:self")]
UPPER = text("SELECT upper(:given)")


@probe.websocket("/echo")
async def echo(websocket: WebSocket, principal: Self, session: ReadSession) -> None:
    await websocket.accept()
    async for message in websocket.iter_text():
        if message == "conflict":
            raise Conflict("That is taken")
        if message == "bug":
            raise RuntimeError("a bug")
        value = await session.fetch_value(UPPER, {"given": message})
        await websocket.send_text(f"{value} {principal.user_id}")


@probe.websocket("/open")
async def open_(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(websocket.state.request_id)
    await websocket.receive_text()


@probe.websocket("/deadline")
async def deadline(websocket: WebSocket) -> None:
    before = websocket.state.deadline.when() is not None
    await websocket.accept()
    after = websocket.state.deadline.when() is not None
    await websocket.send_json({"before": before, "after": after})
    await websocket.receive_text()


@probe.websocket("/admin")
async def admin_(websocket: WebSocket, _: Annotated[Principal, requires("users:admin")]) -> None:
    raise AssertionError("it needs a scope that nobody here has")


@probe.websocket("/limited")
async def limited(websocket: WebSocket, most: int) -> None:
    raise AssertionError("it needs a number")


@probe.websocket("/bug")
async def bug(websocket: WebSocket) -> None:
    raise RuntimeError("a bug")


@probe.websocket("/slow")
async def slow(websocket: WebSocket) -> None:
    await asyncio.sleep(60)


@probe.websocket("/writes")
async def writes(websocket: WebSocket, session: WriteSession) -> None:
    raise AssertionError("a transaction would be open for as long as the websocket")


@pytest.fixture
def request_timeout() -> float:
    return 30.0


@pytest.fixture
def settings(settings: Settings, request_timeout: float) -> Settings:
    update = {"request_timeout": request_timeout, "max_concurrency": 20, "log_level": "info"}
    return settings.model_copy(update=update)


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    async with app_with(settings, probe) as running:
        yield running


async def refusal(client: AsyncClient, path: str) -> httpx2.Response:
    """Returns the response to a websocket that is not accepted."""
    with pytest.raises(WebSocketUpgradeError) as refused:
        async with open_websocket(client, path):
            pass
    return refused.value.response


async def test_it_serves_its_principal_and_reads(client: AsyncClient) -> None:
    me = (await client.get("/users/me")).json()["id"]
    async with open_websocket(client, "/probe/echo") as socket:
        await socket.send_text("hello")
        assert await socket.receive_text(10) == f"HELLO {me}"


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/probe/admin", 403, "This needs the scope users:admin"),
        ("/probe/limited?most=x", 422, "1 field is not valid"),
        ("/probe/bug", 500, "Internal server error"),
        ("/probe/writes", 500, "Internal server error"),
        ("/nothing", 404, "There is no websocket at /nothing"),
        ("/items", 404, "There is no websocket at /items"),
    ],
)
async def test_an_error_before_it_is_accepted_is_a_problem(
    client: AsyncClient, path: str, status: int, detail: str
) -> None:
    response = await refusal(client, path)
    assert response.status_code == status
    assert response.json()["detail"] == detail
    assert response.headers["x-request-id"] == response.json()["request_id"]


@pytest.mark.parametrize("request_timeout", [0.5])
async def test_a_handshake_has_the_deadline_of_a_request(client: AsyncClient) -> None:
    response = await refusal(client, "/probe/slow")
    assert response.status_code == 503
    assert response.json()["detail"] == "There was no answer within 0.5 s; please try again"


async def test_without_a_credential_it_is_refused(anonymous: AsyncClient) -> None:
    response = await refusal(anonymous, "/probe/echo")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [("conflict", 1008, "That is taken"), ("bug", 1011, "Internal server error")],
)
async def test_an_error_afterwards_closes_it(
    client: AsyncClient, events: list[Mapping[str, Any]], message: str, code: int, reason: str
) -> None:
    async with open_websocket(client, "/probe/echo") as socket:
        await socket.send_text(message)
        with pytest.raises(WebSocketDisconnect) as closed:
            await socket.receive_text(10)
    assert (closed.value.code, closed.value.reason) == (code, reason)
    (line,) = [event for event in events if event["event"] == "websocket"]
    assert (line["route"], line["status"], line["code"]) == ("/probe/echo", 101, code)
    assert ("unhandled_error" in [event["event"] for event in events]) is (message == "bug")


async def test_only_the_handshake_has_a_deadline(client: AsyncClient) -> None:
    async with open_websocket(client, "/probe/deadline") as socket:
        assert await socket.receive_json(10) == {"before": True, "after": False}


async def test_it_ends_with_its_credential(client: AsyncClient) -> None:
    async with open_websocket(client, "/probe/echo") as socket:
        assert (await client.post("/auth/logout")).status_code == 204
        await socket.send_text("hello")
        with pytest.raises(WebSocketDisconnect) as closed:
            await socket.receive_text(10)
    assert closed.value.code == 1008


async def test_it_has_a_request_id(client: AsyncClient) -> None:
    client.headers["X-Request-ID"] = "a-well-formed-id"
    async with open_websocket(client, "/probe/open") as socket:
        assert await socket.receive_text(10) == "a-well-formed-id"
        assert socket.response
        assert socket.response.headers["x-request-id"] == "a-well-formed-id"


async def test_one_account_has_a_tenth_of_them(client: AsyncClient, sign_up: SignUp) -> None:
    async with (
        open_websocket(client, "/probe/echo"),
        open_websocket(client, "/probe/echo"),
    ):
        assert (await refusal(client, "/probe/echo")).status_code == 429
        async with open_websocket(await sign_up(), "/probe/echo"):
            pass
    async with open_websocket(client, "/probe/echo"):
        pass


async def test_beyond_the_concurrency_it_is_shed(client: AsyncClient, sign_up: SignUp) -> None:
    accounts = [await sign_up() for _ in range(11)]  # the last slot is for an account without one
    async with AsyncExitStack() as stack:
        for account in (*accounts, *accounts[:8], await sign_up()):
            await stack.enter_async_context(open_websocket(account, "/probe/echo"))
        refused = await refusal(client, "/probe/echo")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/users/me")).status_code == 200
