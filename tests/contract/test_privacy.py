"""An account cannot learn that another account's resources exist: tries every route."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import asyncpg
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from httpx import ASGITransport, AsyncClient, Response
from starlette.types import Message, Receive, Scope, Send

from app.routing import websockets
from app.task_runner import run_until_idle
from shared.db import database_of
from tests.declarations import declared
from tests.kit import SignUp, connect, open_websocket, run_all_tasks

SELECT_UUID_COLUMNS = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = 'public' AND data_type = 'uuid'
"""
PASS_HOURS = "UPDATE users SET deleted_at = deleted_at - interval '1 day' WHERE id = $1"
LEFT_COLUMNS = {
    ("revocations", "id"),  # for as long as a token may name the account
    ("account_events", "actor_id"),  # who deleted it
}
MARK = "zyzzyva"  # part of everything that the owner writes
PUBLISHED_MARK = "aardvark"  # part of what the owner publishes
EVENT_SECONDS = 0.3  # a stream of events is read for so long

Own = Callable[[AsyncClient, str], Awaitable[str]]

OWNED_PARAMETERS: dict[str, Own] = declared("privacy", "OWNED_PARAMETERS")
"""For each path parameter that identifies a resource of an account: how to get one."""

UNOWNED_PARAMETERS: dict[str, str] = declared("privacy", "UNOWNED_PARAMETERS")
"""Path parameters that identify no resource of an account, each with some value."""

PUBLISHED_PARAMETERS: dict[str, Own] = declared("privacy", "PUBLISHED_PARAMETERS")
"""For each path parameter that identifies a resource which an account lets all others read: how to
get one. Its text has another mark, so that what else the account owns is not seen with it."""

PUBLIC_OPERATIONS = {
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    *declared("privacy", "PUBLIC_OPERATIONS"),
}
"""The routes that need no account."""

REQUEST_ARGUMENTS: dict[str, dict[str, Any]] = declared("privacy", "REQUEST_ARGUMENTS")
"""The httpx arguments of requests for which the document has no example."""

REFUSED_OPERATIONS = declared("privacy", "REFUSED_OPERATIONS")
"""The routes where a stranger's request must fail: forbidden, or showing no account's data."""

NO_STORE = {"private, no-store", "no-store"}

HIDDEN = ("/docs", "/openapi.json")
"""The paths that are not in the OpenAPI document."""


@dataclass(frozen=True)
class Route:
    """An operation of the OpenAPI document."""

    method: str
    path: str
    operation: dict[str, Any]
    schemas: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def streams_events(self) -> bool:
        content = self.operation["responses"].get("200", {}).get("content", {})
        return "text/event-stream" in content

    @property
    def parameters(self) -> list[str]:
        declared = self.operation.get("parameters", ())
        return [parameter["name"] for parameter in declared if parameter["in"] == "path"]

    async def call(self, client: AsyncClient, ids: dict[str, str]) -> Response:
        """Sends a valid request: the example of the document, or the `REQUEST_ARGUMENTS`."""
        declared = self.operation.get("parameters", ())
        asked = {"q": MARK} if any(parameter["name"] == "q" for parameter in declared) else {}
        sent = REQUEST_ARGUMENTS.get(self.name) or {"json": self._example()}
        url = self.path.format(**ids)
        if not self.streams_events:
            return await client.request(self.method, url, params=asked, **sent)
        app = ending_streams(cast("ASGITransport", client._transport).app)
        async with connect(app, headers=client.headers) as reader:
            return await reader.request(self.method, url, params=asked, **sent)

    def _example(self) -> Any:
        content = self.operation.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        schema = self.schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        return schema.get("examples", [None])[0]


def ending_streams(app: Any) -> Any:
    """Returns the application with streams of events that end after `EVENT_SECONDS`."""

    async def end(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_for_some_time(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                deadline.reschedule(asyncio.get_running_loop().time() + EVENT_SECONDS)
            await send(message)

        try:
            async with asyncio.timeout(None) as deadline:
                await app(scope, receive, send_for_some_time)
        except TimeoutError:
            await send({"type": "http.response.body"})

    return end


def routes_of(app: FastAPI) -> list[Route]:
    document = app.openapi()
    return [
        Route(method.upper(), path, operation, document["components"]["schemas"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


@pytest.fixture
def names(app: FastAPI) -> set[str]:
    """The path parameters of all routes; fails if these tests have no value for one."""
    found = {name: route.name for route in routes_of(app) for name in route.parameters}
    for name, route in found.items():
        assert name in OWNED_PARAMETERS | PUBLISHED_PARAMETERS | UNOWNED_PARAMETERS, (
            f"{route} has a parameter {{{name}}} that this test cannot fill: say in"
            " tests/privacy.py of its feature how an account gets one (OWNED_PARAMETERS) or lets"
            " others read it (PUBLISHED_PARAMETERS), or that it is nobody's (UNOWNED_PARAMETERS)"
        )
    return set(found)


@pytest.fixture
async def owner(sign_up: SignUp) -> AsyncClient:
    return await sign_up(f"{MARK}@example.com")


@pytest.fixture
async def ids(app: FastAPI, owner: AsyncClient, names: set[str]) -> dict[str, str]:
    """Values for all path parameters: the owner has a resource of each kind."""
    owned = {
        name: await OWNED_PARAMETERS[name](owner, MARK)
        for name in sorted(names)
        if name in OWNED_PARAMETERS
    }
    published = {
        name: await PUBLISHED_PARAMETERS[name](owner, PUBLISHED_MARK)
        for name in sorted(names)
        if name in PUBLISHED_PARAMETERS
    }
    await embed_all(app)
    return owned | published | UNOWNED_PARAMETERS


async def embed_all(app: FastAPI) -> None:
    """Runs the background tasks of all features, so that semantic search finds everything."""
    for feature in app.state.features:
        for task in feature.tasks:
            await run_until_idle(app, task)


def told(response: Response, ids: dict[str, str]) -> tuple[int, str]:
    """Returns the status and the body, without the requested ids and the request id."""
    text = response.text.replace(response.headers["x-request-id"], "")
    for value in ids.values():
        text = text.replace(value, "…")
    return response.status_code, text


async def test_the_ids_of_another_are_as_unknown_as_any(
    app: FastAPI, owner: AsyncClient, sign_up: SignUp, ids: dict[str, str]
) -> None:
    unknown = {
        name: str(uuid4()) if name in OWNED_PARAMETERS else value for name, value in ids.items()
    }
    kept = await what_is_seen(app, owner, ids)
    tried = 0
    for route in routes_of(app):
        if not set(route.parameters) & set(OWNED_PARAMETERS):
            continue
        stranger = await sign_up()
        response = await route.call(stranger, ids)
        assert response.status_code != 422, f"{route.name} needs an example in its schema"
        challenge = response.headers.get("www-authenticate", "")
        assert response.status_code == 404 or "insufficient_scope" in challenge, route.name
        assert MARK not in response.text + str(response.headers), route.name
        assert told(response, ids) == told(await route.call(stranger, unknown), unknown), route.name
        tried += 1
    assert tried
    assert await what_is_seen(app, owner, ids) == kept, "a stranger has changed something"


async def what_is_seen(app: FastAPI, owner: AsyncClient, ids: dict[str, str]) -> dict[str, str]:
    """Returns what the owner reads of each resource, by route."""
    return {
        route.name: told(await route.call(owner, ids), ids)[1]
        for route in routes_of(app)
        if route.method == "GET" and set(route.parameters) & set(OWNED_PARAMETERS)
    }


async def test_nothing_of_another_is_listed_found_or_exported(
    app: FastAPI, sign_up: SignUp, ids: dict[str, str]
) -> None:
    for route in routes_of(app):
        if route.parameters or route.method == "DELETE":
            continue
        stranger = await sign_up()
        response = await route.call(stranger, {})
        assert response.is_success != (route.name in REFUSED_OPERATIONS), (
            f"{route.name}: {response.text}"
        )
        assert MARK not in response.text + str(response.headers), route.name
        for name, value in ids.items():
            assert value not in response.text or name not in OWNED_PARAMETERS, route.name


async def test_what_is_published_others_read_and_do_not_change(
    app: FastAPI, owner: AsyncClient, sign_up: SignUp, ids: dict[str, str]
) -> None:
    for route in routes_of(app):
        if set(route.parameters) & set(PUBLISHED_PARAMETERS):
            response = await route.call(await sign_up(), ids)
            assert MARK not in response.text + str(response.headers), route.name
            if route.method == "GET":
                assert response.status_code == 200, f"{route.name}: {response.text}"
                assert (await route.call(owner, ids)).text == response.text, route.name
            else:
                assert response.status_code in {403, 404}, f"{route.name}: {response.text}"


async def test_a_websocket_is_for_those_who_may_open_it(
    app: FastAPI, anonymous: AsyncClient, sign_up: SignUp, ids: dict[str, str]
) -> None:
    for path in websockets(app.router):
        owned = any(f"{{{name}}}" in path for name in OWNED_PARAMETERS)
        url = path.format(**ids)
        if f"WEBSOCKET {path}" not in PUBLIC_OPERATIONS:
            assert await status_of_websocket(anonymous, url) == 401, (
                f"the websocket {path} needs no account: have it require a principal, or list"
                f" 'WEBSOCKET {path}' in PUBLIC_OPERATIONS in tests/privacy.py of the feature"
            )
        if owned:
            assert await status_of_websocket(await sign_up(), url) == 404, path


async def test_a_deleted_account_leaves_nothing(
    app: FastAPI, owner: AsyncClient, ids: dict[str, str], database_url: str
) -> None:
    owner_id = (await owner.get("/users/me")).json()["id"]
    database = await asyncpg.connect(database_url)
    try:
        columns = [tuple(row) for row in await database.fetch(SELECT_UUID_COLUMNS)]

        async def tables_with_owner() -> set[tuple[str, str]]:
            count = "SELECT count(*) FROM {0} WHERE {1} = $1"
            return {
                (table, column)
                for table, column in columns
                if await database.fetchval(count.format(table, column), owner_id)
            }

        assert ("users", "id") in await tables_with_owner()
        assert (await owner.delete("/users/me")).status_code == 204
        await run_all_tasks(app)
        assert await tables_with_owner() == {*LEFT_COLUMNS, ("users", "id")}
        await database.execute(PASS_HOURS, owner_id)
        await run_all_tasks(app)
        assert await tables_with_owner() == LEFT_COLUMNS
    finally:
        await database.close()


async def status_of_websocket(client: AsyncClient, path: str) -> int:
    from httpx2.websockets import WebSocketUpgradeError  # imports wsproto, for few features

    try:
        async with open_websocket(client, path):
            return 101
    except WebSocketUpgradeError as refused:
        return refused.response.status_code


async def test_the_owner_finds_what_strangers_do_not(
    app: FastAPI, owner: AsyncClient, ids: dict[str, str]
) -> None:
    """Shows that the test above would detect a leak."""
    seen = [
        (await route.call(owner, {})).text
        for route in routes_of(app)
        if route.method == "GET" and not route.parameters
    ]
    assert any(MARK in text for text in seen)
    for name in OWNED_PARAMETERS.keys() & ids.keys():
        assert any(ids[name] in text for text in seen), f"no list shows the owner's {name}"


async def test_without_an_account_everything_private_is_closed(
    app: FastAPI, anonymous: AsyncClient, names: set[str]
) -> None:
    unknown = {name: str(uuid4()) for name in names} | UNOWNED_PARAMETERS
    for route in routes_of(app):
        if "security" in route.operation:
            response = await route.call(anonymous, unknown)
            assert response.status_code == 401, route.name
            assert response.headers["www-authenticate"].startswith("Bearer"), route.name
        else:
            assert route.name in PUBLIC_OPERATIONS, (
                f"{route.name} needs no account: have it require a principal, or list it"
                " in PUBLIC_OPERATIONS in tests/privacy.py of the feature"
            )


async def test_no_shared_cache_keeps_an_answer_for_one(
    app: FastAPI, anonymous: AsyncClient, owner: AsyncClient, sign_up: SignUp, ids: dict[str, str]
) -> None:
    """A key in `X-API-Key` does not keep a cache from sharing an answer; its headers have to."""
    unknown = {name: str(uuid4()) for name in ids} | UNOWNED_PARAMETERS
    statuses = set()
    for route in sorted(routes_of(app), key=lambda route: route.method == "DELETE"):
        private = "security" in route.operation
        stranger = await sign_up()
        requests = ((anonymous, ids), (stranger, unknown), (owner, ids)) if private else ()
        for client, values in requests or ((anonymous, ids),):
            response = await route.call(client, values)
            allowed = {"private, no-cache"} if "etag" in response.headers else NO_STORE
            shown = response.headers["cache-control"]
            assert shown in allowed or (not private and shown.startswith("public")), route.name
            statuses.add(response.status_code)
    assert {200, 201, 204, 401, 403, 404} <= statuses


async def test_who_has_no_account_needs_no_connection(
    app: FastAPI, anonymous: AsyncClient, names: set[str]
) -> None:
    unknown = {name: str(uuid4()) for name in names} | UNOWNED_PARAMETERS
    async with AsyncExitStack() as held:
        database = database_of(app)
        for _ in range(app.state.settings.database_pool_size):
            await held.enter_async_context(database.transaction())
            await held.enter_async_context(database.primary.connection())
        for route in routes_of(app):
            if "security" in route.operation:
                response = await route.call(anonymous, unknown)
                assert response.status_code == 401, (
                    f"{route.name} opens its session before it knows who asks: declare the"
                    " principal first"
                )


def test_every_route_is_in_the_document(app: FastAPI) -> None:
    documented = {*app.openapi()["paths"], *websockets(app.router)}
    for route in iter_route_contexts(app.routes):
        path = getattr(route, "path_format", None)
        assert path is not None
        assert path in documented or path.startswith(HIDDEN), (
            f"{path} is not in the OpenAPI document, and so escapes these tests"
        )
