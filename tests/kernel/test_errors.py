"""Every error is a problem document (RFC 9457) that reveals nothing internal."""

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import asyncpg
import pytest
from fastapi import APIRouter, FastAPI
from httpx import AsyncClient
from prometheus_client import REGISTRY
from sqlalchemy import text
from starlette.types import Message

from shared.db import ReadSession
from shared.db.errors import WORKER_LOST, database_problem, violated_constraint
from shared.settings import Settings
from shared.state import state_of
from tests.app_helpers import app_with, assert_problem, capture_log
from tests.kit import connect

JSON = {"Content-Type": "application/json"}
SECRET = "the inside"
REFUSALS = "tessera_citus_refusals_total"

probe = APIRouter(prefix="/probe", tags=["probe"])


@probe.get("/unforeseen")
async def unforeseen() -> None:
    """Raises an unexpected exception, as a bug does."""
    password = SECRET  # a local variable, which a traceback may show
    raise RuntimeError(f"a bug with {len(password)} letters")


@probe.get("/bad-statement")
async def bad_statement(session: ReadSession) -> None:
    """Sends a statement that the database rejects."""
    await session.fetch(text("SELECT :secret, CAST('no number' AS integer)"), {"secret": SECRET})


@probe.get("/lacking")
async def lacking(session: ReadSession) -> None:
    """Calls a function that the database has not, as after a restore that left it out."""
    await session.fetch(text("SELECT probe_nearest(1)"))


@probe.get("/lost-worker")
async def lost_worker(session: ReadSession, message: str, state: str) -> None:
    """Fails as a coordinator does that has no connection to a worker."""
    await session.fetch(text(f"DO $$ BEGIN RAISE '{message}' USING ERRCODE = '{state}'; END $$"))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"log_format": "json"})


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    async with app_with(settings, probe) as running:
        yield running


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    """Yields the body in chunks, so that it is sent without `Content-Length`."""
    for start in range(0, len(body), 100_000):
        yield body[start : start + 100_000]


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/items/",
        "/nothing/ä b",
        "/what%3F%23",
        "/docs/assets/nothing",
        "/{item_id}",
        "/{",
    ],
)
async def test_an_unknown_path_is_404(anonymous: AsyncClient, path: str) -> None:
    body = assert_problem(await anonymous.get(path), 404)
    assert body["title"] == "Not Found"
    assert body["detail"] == f"There is nothing at {unquote(path)}"


async def test_a_path_that_does_not_begin_with_a_slash(app: FastAPI) -> None:
    """`OPTIONS *` is a request for the server as a whole (RFC 9110, section 9.3.7)."""
    statuses = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "OPTIONS", "path": "*", "headers": [], "query_string": b""}
    await app(scope | {"server": ("localhost", 80)}, receive, send)
    assert statuses[0] == 404


async def test_the_constraint_of_a_shard_is_known_by_the_name_of_the_tables(
    client: AsyncClient, database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    name = "uq_items_owner_id_external_id"
    await connection.execute(f"ALTER TABLE items RENAME CONSTRAINT {name} TO {name}_102021")
    await connection.close()
    mug = {"title": "Mug", "price": 1, "external_id": "mug"}
    await client.post("/items", json=mug)
    body = assert_problem(await client.post("/items", json=mug), 409)
    assert body["detail"] == "You already have an item with this external_id"


async def test_a_missing_item_is_404(client: AsyncClient) -> None:
    item_id = uuid4()
    body = assert_problem(await client.get(f"/items/{item_id}"), 404)
    assert body["detail"] == f"Item {item_id} not found"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/items", {"GET", "POST"}),
        ("/items/0197b7de-97c5-7c5f-8a6e-8f1c86a1d2a4", {"GET", "PATCH", "DELETE"}),
        ("/auth/token", {"POST"}),
        ("/healthz", {"GET"}),
    ],
)
async def test_a_method_that_is_not_allowed(
    anonymous: AsyncClient, path: str, allowed: set[str]
) -> None:
    response = await anonymous.put(path)
    assert assert_problem(response, 405)["detail"] == "PUT is not allowed here"
    assert set(response.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/items", "/users", "/auth/token"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared length", "chunked"])
async def test_a_body_that_is_too_large(client: AsyncClient, path: str, declared: bool) -> None:
    form = path == "/auth/token"
    media_type = "application/x-www-form-urlencoded" if form else "application/json"
    body = b"x" * 1_000_001
    content = body if declared else in_pieces(body)
    response = await client.post(path, content=content, headers={"Content-Type": media_type})
    assert assert_problem(response, 413)["detail"] == "The body is larger than 1,000,000 bytes"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "nonsense",
        None,
    ],
)
async def test_a_body_that_is_not_json(client: AsyncClient, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    item = b'{"title": "Mug", "price": 1}'
    response = await client.post("/items", content=item, headers=headers)
    sent = media_type or "untyped"
    assert (
        assert_problem(response, 415)["detail"] == f"The body must be application/json, not {sent}"
    )


BAD_BODIES: list[tuple[bytes, str, str]] = [
    (b'{"title": "Mug",}', "", "Not valid JSON at character 16: Expecting property name"),
    (b'{"title": "Mug"', "", "Not valid JSON at character 15"),
    (b'{"title": "nul \x00", "price": 1}', "", "Not valid JSON at character 15"),
    (b'{"title": "\xff", "price": 1}', "", "Not valid UTF-8 at byte 11"),
    (b"[" * 100_000, "", "The JSON is nested too deeply"),
    (b'{"title": ' * 90_000, "", "The JSON is nested too deeply"),
    (b'{"title": "Mug", "price": ' + b"9" * 5_000 + b"}", "", "A number in the JSON has"),
    (b"", "", "Field required"),
    (b"null", "", "Input should be a valid dictionary"),
    (b"[]", "", "Input should be a valid dictionary"),
    (b'{"title": "nul \\u0000", "price": 1}', "/title", "String should not contain NUL"),
    (b'{"title": "\\ud800", "price": 1}', "/title", "Input should be a valid string"),
    (b'{"\\ud800": 1, "title": "Mug", "price": 1}', "", "Input should be a valid string"),
    (b'{"title": [[]], "price": 1}', "/title", "Input should be a valid string"),
    (b'{"title": "Mug", "price": NaN}', "/price", "Input should be a finite number"),
    (b'{"title": "Mug", "price": 1e999}', "/price", "Input should be a finite number"),
    (b'{"title": "Mug", "price": 1e-400}', "/price", "Input should be greater than 0"),
    (b'{"title": "Mug", "price": 1e400000000}', "/price", "Input should be a finite number"),
    (b'{"title": "Mug", "price": 1, "price": -1}', "/price", "Input should be greater than 0"),
    (b'{"a/b~c": 1, "title": "Mug", "price": 1}', "/a~1b~0c", "Extra inputs are not permitted"),
]


async def test_a_body_that_is_not_valid(client: AsyncClient, subtests: pytest.Subtests) -> None:
    for body, pointer, detail in BAD_BODIES:
        with subtests.test(body=body, pointer=pointer, detail=detail):
            found = assert_problem(await client.post("/items", content=body, headers=JSON), 422)
            (error,) = found["errors"]
            assert (error["location"], error["pointer"]) == ("body", pointer)
            assert error["detail"].startswith(detail)


async def test_each_field_that_is_not_valid_is_pointed_at(client: AsyncClient) -> None:
    found = assert_problem(await client.post("/items", json={"title": "", "price": 0}), 422)
    assert found["detail"] == "2 fields are not valid"
    assert [error["pointer"] for error in found["errors"]] == ["/title", "/price"]


BAD_QUERIES: list[str] = [
    "q=%00",
    "limit=" + "9" * 5_000,
    "min_price=" + "9" * 5_000,
    "created_after=" + "9" * 50,
    "unknown=%ff",
]


async def test_a_query_that_is_not_valid(client: AsyncClient, subtests: pytest.Subtests) -> None:
    for query in BAD_QUERIES:
        with subtests.test(query=query):
            found = assert_problem(await client.get(f"/items?{query}"), 422)
            (error,) = found["errors"]
            assert (error["location"], error["pointer"]) == ("query", f"/{query.partition('=')[0]}")


BAD_IDS: list[str] = ["%00", "%ff", "%2F", "0197", "9" * 5_000]


async def test_an_id_that_is_none_finds_nothing(
    client: AsyncClient, subtests: pytest.Subtests
) -> None:
    for item_id in BAD_IDS:
        with subtests.test(item_id=item_id):
            assert (await client.get(f"/items/{item_id}")).status_code in {404, 422}


async def test_a_character_that_postgresql_cannot_hold(anonymous: AsyncClient) -> None:
    form = {"grant_type": "password", "username": "nul \x00", "password": "a password"}
    response = await anonymous.post("/auth/token", data=form)
    assert 400 <= response.status_code < 500, response.text


async def test_a_bug_is_logged_and_not_shown_to_the_client(anonymous: AsyncClient) -> None:
    lines = capture_log()

    response = await anonymous.get("/probe/unforeseen")

    body = assert_problem(response, 500)
    assert body["detail"] == "Internal server error"
    assert "RuntimeError" not in response.text + str(response.headers)
    assert "letters" not in response.text + str(response.headers)
    (line,) = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert (line["event"], line["request_id"]) == ("unhandled_error", body["request_id"])
    (exception,) = line["exception"]
    assert exception["exc_type"] == "RuntimeError"
    assert exception["frames"][-1]["name"] == "unforeseen"
    assert SECRET not in lines.getvalue(), "a traceback must not show local variables"


async def test_what_a_bug_sends_to_the_database_is_not_logged(anonymous: AsyncClient) -> None:
    lines = capture_log()
    assert_problem(await anonymous.get("/probe/bad-statement"), 500)
    assert "invalid input syntax" in lines.getvalue()
    assert SECRET not in lines.getvalue()


@pytest.mark.parametrize(
    ("message", "state"),
    [
        ("SSL SYSCALL error: EOF detected", "XX000"),
        ("failure on connection marked as essential: worker2:5432", "XX000"),
        ("connection to the remote node worker2:5432 failed", "08006"),
        ("could not establish any connections to the node worker2:5432 after 3000 ms", "08006"),
    ],
)
async def test_a_worker_that_the_coordinator_has_lost_is_no_bug(
    app: FastAPI, anonymous: AsyncClient, message: str, state: str
) -> None:
    before = REGISTRY.get_sample_value(REFUSALS)
    lost = {"message": message, "state": state}
    body = assert_problem(await anonymous.get("/probe/lost-worker", params=lost), 503)
    assert body["detail"] == WORKER_LOST
    assert REGISTRY.get_sample_value(REFUSALS) == (before or 0) + 1
    opened = [c for c in state_of(app).database.primary.connections if not c.is_closed()]
    assert opened, "the connection to the coordinator was closed"
    assert database_problem(asyncpg.InternalServerError("cache lookup failed")) is None


def test_a_constraint_is_known_where_only_the_message_of_a_worker_has_its_name() -> None:
    message = 'duplicate key value violates unique constraint "uq_orders_owner_id_name_102021"'
    assert violated_constraint(asyncpg.UniqueViolationError(message)) == "uq_orders_owner_id_name"


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


async def test_the_log_names_what_the_database_lacks(anonymous: AsyncClient) -> None:
    lines = capture_log()
    assert_problem(await anonymous.get("/probe/lacking"), 500)
    (logged,) = [json.loads(line) for line in lines.getvalue().splitlines() if "missing" in line]
    assert logged["missing"] == "function probe_nearest(integer) does not exist"
    assert logged["advice"] == "python -m app doctor"


@pytest.mark.parametrize("path", ["/items", "/nothing", "/probe/unforeseen"])
async def test_errors_carry_the_id_of_the_request(app: FastAPI, path: str) -> None:
    async with connect(app, headers={"X-Request-ID": "given-by-the-client"}) as client:
        response = await client.get(path)
    assert response.json()["request_id"] == "given-by-the-client"
    assert response.headers["x-request-id"] == "given-by-the-client"
