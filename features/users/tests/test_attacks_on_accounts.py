"""Attacks on accounts over HTTP: enumeration, mass assignment, IDOR and injection."""

import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response

from features.users.passwords.hashing import PasswordHasher
from features.users.state import UsersState, state_of
from features.users.tests.api_processes import api_process
from features.users.tests.conftest import (
    EMAIL,
    Execute,
    Tokens,
    by_password,
    register,
    tokens_of,
)
from features.users.tests.test_api_keys import new_key
from tests.kit import PASSWORD
from tests.kit.queries import recorded_queries

NOBODY = "nobody@example.com"
PRIVILEGES: dict[str, Any] = {
    "is_admin": True,
    "role": "admin",
    "scopes": ["users:admin"],
    "id": str(uuid4()),
    "user_id": str(uuid4()),
    "owner_id": str(uuid4()),
    "email_verified": True,
    "is_active": True,
    "password_hash": "x",
    "created_at": "2020-01-01T00:00:00Z",
}


# --- Enumeration of accounts -------------------------------------------------------------


async def test_enumeration_by_the_answer(anonymous: AsyncClient) -> None:
    await register(anonymous)

    async def sign_in(email: str) -> Response:
        return await by_password(anonymous, email, "a wrong password")

    async def forget(email: str) -> Response:
        return await anonymous.post("/auth/password/forgot", json={"email": email})

    for ask in (sign_in, forget):
        known, unknown = await ask(EMAIL), await ask(NOBODY)
        assert (known.status_code, known.content) == (unknown.status_code, unknown.content)
        ignored = {"x-request-id"}
        assert {k: v for k, v in known.headers.items() if k not in ignored} == {
            k: v for k, v in unknown.headers.items() if k not in ignored
        }


async def test_enumeration_by_the_answer_to_a_deactivated_account(
    anonymous: AsyncClient, execute: Execute
) -> None:
    await register(anonymous)
    await execute("UPDATE users SET is_active = false")
    known, unknown = await by_password(anonymous), await by_password(anonymous, NOBODY)
    assert (known.status_code, known.content) == (unknown.status_code, unknown.content)


async def advantage(ask: Callable[[str], Awaitable[object]], *, tries: int) -> float:
    """Measures how well response times distinguish a known from an unknown email, from 0 to 1.

    Returns the area under the ROC curve: 0.5 is as good as guessing. Both are requested in turns.
    """
    times: dict[str, list[float]] = {EMAIL: [], NOBODY: []}
    for i in range(tries + 3):
        for email in sorted(times, reverse=bool(i % 2)):
            started = time.perf_counter()
            await ask(email)
            if i >= 3:  # the first three fill caches
                times[email].append(time.perf_counter() - started)
    wins = [known > unknown for known in times[EMAIL] for unknown in times[NOBODY]]
    return sum(wins) / len(wins)


@pytest.mark.verify
async def test_enumeration_by_the_time_of_a_sign_in(app: FastAPI, anonymous: AsyncClient) -> None:
    """Uses the real hash cost. Without a hash for unknown accounts, the result would be 1.0."""
    app.state.resources[UsersState] = dataclasses.replace(
        state_of(app), hasher=PasswordHasher(cheap=False)
    )
    await register(anonymous)

    async def ask(email: str) -> None:
        assert (await by_password(anonymous, email, "a wrong password")).status_code == 400

    assert 0.15 < await advantage(ask, tries=25) < 0.85


async def test_enumeration_by_the_time_of_a_forgotten_password(anonymous: AsyncClient) -> None:
    """If the request itself wrote the mail of a known account, the result would be 1.0."""
    await register(anonymous)

    async def ask(email: str) -> None:
        await anonymous.post("/auth/password/forgot", json={"email": email})

    assert 0.25 < await advantage(ask, tries=60) < 0.75


async def test_enumeration_by_what_a_request_does(anonymous: AsyncClient) -> None:
    """The same statements run whether or not the account exists.

    This catches differences that are too small for the timing tests above.
    """
    await register(anonymous)

    async def statements(path: str, email: str) -> list[str]:
        with recorded_queries() as recorded:
            if path == "/auth/token":
                await by_password(anonymous, email, "a wrong password")
            else:
                await anonymous.post(path, json={"email": email})
        return recorded

    for path in ("/auth/token", "/auth/password/forgot"):
        assert await statements(path, EMAIL) == await statements(path, NOBODY) != []


# --- Mass assignment ---------------------------------------------------------------------


def write_routes(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields method, path and body schema of every route that takes JSON."""
    document = app.openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            if schema := content.get("application/json", {}).get("schema"):
                name = schema.get("$ref", "").rsplit("/", 1)[-1]
                yield method.upper(), path, document["components"]["schemas"].get(name, schema)


async def test_mass_assignment_in_every_write_body(app: FastAPI, admin: AsyncClient) -> None:
    """Runs as an administrator, so that missing scopes do not hide a failure."""
    routes = list(write_routes(app))
    assert routes
    for method, path, schema in routes:
        url = path.replace("{", "").replace("}", "")
        for segment in path.split("/"):
            if segment.startswith("{"):
                url = url.replace(segment.strip("{}"), str(uuid4()))
        smuggled = {k: v for k, v in PRIVILEGES.items() if k not in schema.get("properties", {})}
        response = await admin.request(method, url, json=smuggled)
        assert response.status_code == 422, (method, path, response.text)
        refused = {
            error["pointer"].strip("/")
            for error in response.json()["errors"]
            if "not permitted" in error["detail"]
        }
        assert refused == set(smuggled), (method, path)


async def test_mass_assignment_at_registration(anonymous: AsyncClient, execute: Execute) -> None:
    for name, value in PRIVILEGES.items():
        body = {"email": EMAIL, "password": PASSWORD, name: value}
        assert (await anonymous.post("/users", json=body)).status_code == 422
    assert await execute("SELECT 1 FROM users") == []


async def test_making_oneself_an_administrator(client: AsyncClient) -> None:
    me = (await client.get("/users/me")).json()
    for body in ({"role": "admin"}, {"name": "x", "role": "admin"}, {"email_verified": True}):
        assert (await client.patch("/users/me", json=body)).status_code == 422
    assert (await client.patch(f"/users/{me['id']}", json={"role": "admin"})).status_code == 403
    assert (await by_password(client, me["email"], scope="users:admin")).status_code == 400
    assert (await client.get("/users/me")).json() == me


# --- Access to other accounts (IDOR) -----------------------------------------------------


def ids_in(value: object) -> Iterator[str]:
    """Yields the values of all fields named `id` or `*_id`, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if inner and (name == "id" or name.endswith("_id")):
                yield str(inner)
            yield from ids_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from ids_in(inner)


def lists(app: FastAPI) -> list[str]:
    """Returns the paths of all GET routes without path parameters that need a credential."""
    return [
        path
        for path, operations in app.openapi()["paths"].items()
        if "{" not in path and "security" in operations.get("get", {})
    ]


async def everything(client: AsyncClient, paths: list[str]) -> dict[str, Any]:
    """Returns the JSON bodies of these paths, as the account sees them."""
    seen = {}
    for path in paths:
        answer = await client.get(path, params={"q": "mug"} if path == "/search" else None)
        if answer.status_code == 200 and answer.headers["content-type"] == "application/json":
            seen[path] = answer.json()
    return seen


async def test_idor_over_every_route(
    app: FastAPI, client: AsyncClient, other_client: AsyncClient
) -> None:
    """Another account tries every id that the victim can see in every path and method.

    All requests are refused, and nothing changes. New routes are included automatically.
    """
    await new_key(client)
    if "/items" in app.openapi()["paths"]:
        made = await client.post("/items", json={"title": "Mug", "price": 1})
        assert made.status_code == 201
    paths = lists(app)
    before = await everything(client, paths)
    ids = set(ids_in(before))
    assert len(ids) >= 4, "the account, its session, its key, its events"
    assert not ids & set(ids_in(await everything(other_client, paths)))

    tried = 0
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            if "{" not in path or "security" not in operation:
                continue
            for stolen in ids:
                url = "/".join(stolen if s.startswith("{") else s for s in path.split("/"))
                body = {"price": 2} if method == "patch" and path.startswith("/items") else None
                answer = await other_client.request(method.upper(), url, json=body)
                tried += 1
                assert answer.status_code in (403, 404, 422), (method, path, answer.text)
                if answer.status_code == 403:
                    assert "users:admin" in answer.json()["detail"]
    assert tried
    assert await everything(client, paths) == before


# --- Injection into headers and logs, and passwords --------------------------------------


async def test_header_injection(anonymous: AsyncClient) -> None:
    forged = {"X-Request-ID": "12345678\r\nSet-Cookie: session=fixed"}
    answer = await anonymous.get("/healthz", headers=forged)
    assert "set-cookie" not in answer.headers
    assert "\n" not in answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "email", ["a@example.com\r\nBcc: all@example.com", "a@example.com\n", "a\x00@example.com"]
)
async def test_mail_header_injection(anonymous: AsyncClient, email: str, execute: Execute) -> None:
    for path, body in (
        ("/users", {"email": email, "password": PASSWORD}),
        ("/auth/password/forgot", {"email": email}),
    ):
        answer = await anonymous.post(path, json=body)
        if answer.status_code != 422:  # surrounding spaces are trimmed
            assert answer.status_code in (201, 202)
    for row in await execute("SELECT recipient FROM outgoing_mail"):
        assert row["recipient"].isprintable()


async def test_what_a_client_says_of_itself(anonymous: AsyncClient, signed_in: Tokens) -> None:
    """The user agent is stored on one line, without terminal control characters."""
    forged = 'Phone\r\n2026-01-01 [info] signed_in user="root"\x1b[2J\u2028'
    anonymous.headers["User-Agent"] = forged.encode("utf-8").decode("latin-1")
    anonymous.headers["X-Forwarded-For"] = "127.0.0.1\r\nforged"
    await by_password(anonymous, email="root\r\nforged@example.com")
    tokens = tokens_of(await by_password(anonymous))
    listed = (await anonymous.get("/auth/sessions", headers=tokens.header)).json()["items"]
    assert listed[0]["user_agent"].isprintable()
    assert listed[0]["user_agent"].startswith("Phone")
    assert listed[0]["address"] == "127.0.0.1"


@pytest.mark.verify
async def test_what_is_logged_has_no_secret_and_no_line_of_the_clients(
    database_url: str, tmp_path: Path
) -> None:
    """Reads the JSON log of a separate process: each line is one event of the application."""
    log = tmp_path / "log"
    settings = {
        "APP_LOG_LEVEL": "info",
        "APP_LOG_FORMAT": "json",
        "APP_SMTP_URL": "smtp://127.0.0.1:9",  # a closed port, so that no mail is logged
    }
    async with api_process(database_url, log, **settings) as client:
        await register(client)
        forged = 'x\n{"event": "forged"}\r\u2028'
        await by_password(client, email=forged, password=forged)
        await client.get(f"/users/{quote(forged)}", params={"q": forged})
        tokens = tokens_of(await by_password(client))
        me = await client.get("/users/me", headers=tokens.header)
        made = await client.post(
            "/users/me/api-keys",
            json={"name": forged, "scopes": ["users:self"]},
            headers=tokens.header,
        )
        await client.get("/users/me", headers={"X-API-Key": made.json()["key"]})
    written = log.read_text()
    events = [json.loads(line) for line in written.split("\n") if line]
    assert sum(event["event"] == "request" for event in events) >= 7
    assert "forged" not in {event["event"] for event in events}
    for secret in (PASSWORD, tokens.access, tokens.refresh, made.json()["key"], "argon2"):
        assert secret not in written
        assert secret not in me.text


async def test_a_password_of_a_megabyte_costs_nothing(anonymous: AsyncClient) -> None:
    """It is refused by its length, before it is hashed."""
    huge = "x" * 900_000
    assert (await by_password(anonymous, password=huge)).status_code == 400
    body = {"email": EMAIL, "password": huge}
    assert (await anonymous.post("/users", json=body)).status_code == 422


async def test_guessing_offline_is_slow() -> None:
    """The real cost: argon2id with 64 MiB, at least what OWASP recommends."""
    hashed = await PasswordHasher(cheap=False).hash(PASSWORD)
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
