"""HTTP clients of the application, each with a different identity."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from tests.kit.servers import execute

PASSWORD = "a long enough password"


@asynccontextmanager
async def connect(app: FastAPI, **options: Any) -> AsyncIterator[AsyncClient]:
    """Opens an HTTP client that calls the application in this process, without a server."""
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://testserver", **options) as client:
        yield client


@pytest.fixture
async def anonymous(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client that has not signed in."""
    async with connect(app) as client:
        yield client


async def is_ready(client: AsyncClient) -> bool:
    """Whether `/readyz` answers 200. On a busy machine it may miss its 1.5 s: ask `eventually`."""
    return (await client.get("/readyz")).status_code == 200


SignUp = Callable[..., Awaitable[AsyncClient]]


@pytest.fixture
async def sign_up(app: FastAPI) -> AsyncIterator[SignUp]:
    """Creates a client that is signed in to a new account: `await sign_up("ada@example.com")`."""
    async with _clients(app) as new_client:
        yield new_client


@asynccontextmanager
async def _clients(app: FastAPI) -> AsyncIterator[SignUp]:
    clients: list[AsyncClient] = []

    async def new_client(email: str | None = None) -> AsyncClient:
        client = AsyncClient(
            transport=ASGITransport(app, raise_app_exceptions=False), base_url="http://testserver"
        )
        clients.append(client)
        await sign_in(client, email or f"{secrets.token_hex(6)}@example.com")
        return client

    yield new_client
    for client in clients:
        await client.aclose()


async def sign_in(client: AsyncClient, email: str) -> None:
    """Registers an account over HTTP and signs the client in to it."""
    registered = await client.post("/users", json={"email": email, "password": PASSWORD})
    assert registered.status_code == 201, registered.text
    await _grant(client, email)


async def _grant(client: AsyncClient, email: str) -> None:
    form = {"grant_type": "password", "username": email, "password": PASSWORD}
    granted = await client.post("/auth/token", data=form)
    assert granted.status_code == 200, granted.text
    client.headers["Authorization"] = f"Bearer {granted.json()['access_token']}"


@pytest.fixture
async def client(sign_up: SignUp) -> AsyncClient:
    """A client signed in to an account."""
    return await sign_up()


@pytest.fixture
async def other_client(sign_up: SignUp) -> AsyncClient:
    """A client signed in to another account."""
    return await sign_up()


@pytest.fixture
async def admin(sign_up: SignUp, database_url: str) -> AsyncClient:
    """A client signed in as an administrator."""
    email = f"{secrets.token_hex(6)}@example.com"
    client = await sign_up(email)
    await execute(database_url, "UPDATE users SET role = 'admin' WHERE email = $1", email)
    await _grant(client, email)
    return client


@pytest.fixture
async def api_key_client(client: AsyncClient, app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client with an API key of the account of `client`, with all scopes except `users:*`."""
    known = {scope for feature in app.state.features for scope in feature.scopes}
    scopes = sorted(scope for scope in known if not scope.startswith("users:"))
    made = await client.post("/users/me/api-keys", json={"name": "robot", "scopes": scopes})
    assert made.status_code == 201, made.text
    async with connect(app, headers={"X-API-Key": made.json()["key"]}) as robot:
        yield robot
