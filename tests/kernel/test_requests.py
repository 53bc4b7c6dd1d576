"""Every request has an id, security and CORS headers, and a line in the log."""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.sse import EventSourceResponse
from httpx import AsyncClient

from shared.settings import Settings
from tests.app_helpers import app_with
from tests.kit import PASSWORD, Server, free_port
from tests.serving import serving

ORIGIN = "https://shop.example.com"
PATHS = ["/healthz", "/items", "/nothing", "/docs", "/openapi.json", "/probe/unforeseen"]

probe = APIRouter(prefix="/probe", tags=["probe"])


@probe.get("/unforeseen")
async def unforeseen() -> None:
    """Raises an unexpected exception, as a bug does."""
    raise RuntimeError("a bug")


@probe.get("/published")
async def published(response: Response) -> None:
    response.headers["Cache-Control"] = "public, max-age=60"


@probe.get("/tagged")
async def tagged(response: Response) -> None:
    response.headers["ETag"] = '"1"'


@probe.get("/events", response_class=EventSourceResponse)
async def events() -> AsyncIterator[str]:
    yield "begun"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"cors_origins": (ORIGIN,), "log_level": "info"})


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    async with app_with(settings, probe) as running:
        yield running


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_has_an_id_of_its_own(anonymous: AsyncClient, path: str) -> None:
    ids = {(await anonymous.get(path)).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(len(id_) == 32 for id_ in ids)


async def test_a_well_formed_id_is_taken(anonymous: AsyncClient) -> None:
    for given in ("12345678", "a.b_c-D9", "x" * 128, "0197b7de-97c5-7c5f-8a6e-8f1c86a1d2a4"):
        response = await anonymous.get("/healthz", headers={"X-Request-ID": given})
        assert response.headers["x-request-id"] == given


async def test_a_malformed_id_is_replaced(anonymous: AsyncClient) -> None:
    for given in ("", "short", "x" * 129, "with space", "line\tbreak", "quote\"'<>{}", "ümläutig"):
        headers = {b"X-Request-ID": given.encode()}
        response = await anonymous.get("/healthz", headers=headers)
        assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize("path", PATHS)
async def test_every_answer_has_the_security_headers(anonymous: AsyncClient, path: str) -> None:
    headers = (await anonymous.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["strict-transport-security"].startswith("max-age=")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "server" not in headers


@pytest.mark.parametrize("path", PATHS)
async def test_an_allowed_origin_may_read_every_answer(anonymous: AsyncClient, path: str) -> None:
    response = await anonymous.get(path, headers={"Origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "Origin" in response.headers["vary"]
    exposed = response.headers["access-control-expose-headers"]
    assert {"ETag", "Location", "WWW-Authenticate", "X-Request-ID"} <= set(exposed.split(", "))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/probe/published", "public, max-age=60"),
        ("/probe/tagged", "private, no-cache"),
        ("/probe/events", "private, no-store"),
        ("/probe/unforeseen", "private, no-store"),
        ("/nothing", "private, no-store"),
    ],
)
async def test_a_response_is_private_unless_its_route_says_otherwise(
    anonymous: AsyncClient, path: str, expected: str
) -> None:
    response = await anonymous.get(path)
    assert response.headers.get_list("cache-control") == [expected]
    assert "Origin" in response.headers["vary"]  # the answer depends on it, even if it is absent


async def test_an_allowed_origin_may_send_any_request(anonymous: AsyncClient) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization,if-match",
    }
    response = await anonymous.options("/items", headers=asked)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "PATCH" in response.headers["access-control-allow-methods"]
    assert "if-match" in response.headers["access-control-allow-headers"]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("origin", ["https://other.example.com", "null", f"{ORIGIN}.evil.example"])
async def test_another_origin_may_not(anonymous: AsyncClient, origin: str) -> None:
    response = await anonymous.get("/items", headers={"Origin": origin})
    assert "access-control-allow-origin" not in response.headers
    asked = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    refused = await anonymous.options("/items", headers=asked)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.verify
def test_the_log_has_a_line_a_request_and_no_secret(
    server: Server, database_url: str, tmp_path: Path
) -> None:
    settings = {
        "env": "test",
        "database_url": database_url,
        "secret_key": "a secret key that nobody may ever read",
        "log_format": "json",
        "log_level": "debug",
    }
    with serving(tmp_path, free_port(), settings) as served:
        with httpx.Client(base_url=served.address, timeout=30) as client:
            secrets = use_the_api(client)
            item = client.post("/items", json={"title": "Mug", "price": 1})
            found = client.get(item.headers["location"], headers={"X-Request-ID": "find-it-again"})
            user_id = client.get("/users/me").json()["id"]
        assert served.stop() == 0
    log = served.log.read_text()
    for secret in [*secrets, settings["secret_key"]]:
        assert secret not in log
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
    (line,) = [line for line in lines if line.get("request_id") == "find-it-again"]
    assert found.status_code == 200
    expected: dict[str, Any] = {
        "event": "request",
        "level": "info",
        "request_id": "find-it-again",
        "method": "GET",
        "route": "/items/{item_id}",
        "status": 200,
        "user_id": user_id,
    }
    assert {**line, **expected} == line
    assert line["ms"] >= 0
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests[:4]] == [201, 409, 422, 200]


async def test_a_status_is_logged_as_a_number(
    client: AsyncClient, events: list[Mapping[str, Any]]
) -> None:
    for path in ("/items", "/users/me/api-keys", "/nothing"):
        await client.post(path, json={"title": "Mug", "price": 1})
    assert {type(event["status"]) for event in events if event["event"] == "request"} == {int}


def use_the_api(client: httpx.Client) -> list[str]:
    """Registers and signs in, also with failures; returns what must not be logged."""
    wrong = "another password that nobody may read"
    account = {"email": "ada@example.com", "password": PASSWORD}
    client.post("/users", json=account)
    client.post("/users", json=account)
    client.post("/users", json=account | {"email": "nonsense"})
    form = {"grant_type": "password", "username": "ada@example.com", "password": PASSWORD}
    tokens = client.post("/auth/token", data=form).json()
    client.post("/auth/token", data=form | {"password": wrong})
    client.get("/items", headers={"Authorization": "Bearer a-token-of-somebody-else"})
    client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    issued = [value for name, value in tokens.items() if name in {"access_token", "refresh_token"}]
    return [PASSWORD, wrong, "a-token-of-somebody-else", *issued]
