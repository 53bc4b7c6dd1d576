"""HTTP clients of the application, each with a different identity."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from httpx2 import AsyncClient as WebSocketClient

from shared.feature import Feature

if TYPE_CHECKING:
    from httpx2.websockets import AsyncWebSocketSession

ROOT = Path(__file__).parents[2]
PASSWORD = "a long enough password"
WEBSOCKET_URL = "ws://testserver"


@asynccontextmanager
async def connect(
    app: FastAPI, address: str = "127.0.0.1", **options: Any
) -> AsyncIterator[AsyncClient]:
    """Opens an HTTP client that calls the application in this process, without a server."""
    transport = ASGITransport(app, raise_app_exceptions=False, client=(address, 123))
    async with AsyncClient(transport=transport, base_url="http://testserver", **options) as client:
        yield client


@asynccontextmanager
async def open_websocket(client: AsyncClient, path: str) -> AsyncIterator["AsyncWebSocketSession"]:
    """Opens a websocket with the headers of an HTTP client, on the same application.

    Raises:
        WebSocketUpgradeError: it is refused; `error.response` says why.
    """
    from httpx2.websockets import ASGIWebSocketTransport  # imports wsproto, for few tests

    app = cast("ASGITransport", client._transport).app
    transport = ASGIWebSocketTransport(app, initial_receive_timeout=10)
    headers = dict(client.headers)
    try:
        async with (
            WebSocketClient(transport=transport, base_url=WEBSOCKET_URL, headers=headers) as opener,
            opener.websocket(path, keepalive_ping_interval_seconds=None) as socket,
        ):
            yield socket
    except BaseExceptionGroup as group:
        raise _only_error(group) from None


def _only_error(error: BaseException) -> BaseException:
    """Returns the error that the tasks of a transport have wrapped."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        (error,) = error.exceptions
    return error


@asynccontextmanager
async def open_events(client: AsyncClient, path: str) -> AsyncIterator[AsyncIterator[str]]:
    """Opens a stream of server-sent events with the headers of an HTTP client, on the same
    application, and yields its lines as they come. httpx itself waits for the end of a stream.

    Raises:
        HTTPStatusError: it is refused.
    """
    request = client.build_request("GET", path, headers={"Accept": "text/event-stream"})
    scope = {
        "type": "http",
        "method": "GET",
        "path": request.url.path,
        "query_string": request.url.query,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 123),
    }
    requested = iter([{"type": "http.request", "body": b""}])
    sent: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
    left = asyncio.Event()

    async def receive() -> Mapping[str, Any]:
        for message in requested:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def lines() -> AsyncIterator[str]:
        received, more = b"", True
        while more:
            message = await sent.get()
            *complete, received = (received + message.get("body", b"")).split(b"\n")
            for line in filter(None, complete):
                yield line.decode()
            more = message.get("more_body", False)

    app = cast("ASGITransport", client._transport).app
    serving = asyncio.create_task(cast("Any", app)(scope, receive, sent.put))
    try:
        start = await sent.get()
        Response(start["status"], request=request).raise_for_status()
        yield lines()
    finally:
        left.set()
        await serving


@pytest.fixture
async def anonymous(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client that has not signed in."""
    async with connect(app) as client:
        yield client


async def is_ready(client: AsyncClient) -> bool:
    """Whether `/readyz` answers 200. On a busy machine it may miss its 1.5 s: ask `eventually`."""
    return (await client.get("/readyz")).status_code == 200


class Accounts(Protocol):
    """How tests get accounts: `tests/accounts.py` of the feature that has the authenticator.

    Each function returns the request headers of a new credential.
    """

    async def create_account(
        self, app: FastAPI, email: str, *, admin: bool = False
    ) -> dict[str, str]:
        """Creates an account with the password `PASSWORD`, and a session of it."""

    async def create_api_key(self, app: FastAPI, headers: Mapping[str, str]) -> dict[str, str]:
        """Creates an API key for the account of these headers, with all scopes of the others."""


def accounts_of(app: FastAPI) -> Accounts:
    """Returns how to create accounts in this application; fails if no feature says that."""
    features: Sequence[Feature] = app.state.features
    names = [feature.name for feature in features if feature.authenticator]
    assert names, "none of the features under test has an authenticator, so there are no accounts"
    file = f"features/{names[0]}/tests/accounts.py"
    assert (ROOT / file).exists(), (
        f"{file} is missing: it has to define what `Accounts` in tests/kit/clients.py declares"
    )
    return cast("Accounts", import_module(f"features.{names[0]}.tests.accounts"))


async def sign_in(app: FastAPI, client: AsyncClient, email: str) -> None:
    """Creates an account, and signs the client in to it."""
    client.headers.update(await accounts_of(app).create_account(app, email))


def random_email() -> str:
    return f"{secrets.token_hex(6)}@example.com"


SignUp = Callable[..., Awaitable[AsyncClient]]


@pytest.fixture
async def sign_up(app: FastAPI) -> AsyncIterator[SignUp]:
    """Creates a client that is signed in to a new account: `await sign_up("ada@example.com")`."""
    async with AsyncExitStack() as clients:

        async def new_client(email: str | None = None) -> AsyncClient:
            client = await clients.enter_async_context(connect(app))
            await sign_in(app, client, email or random_email())
            return client

        yield new_client


@pytest.fixture
async def client(sign_up: SignUp) -> AsyncClient:
    """A client signed in to an account."""
    return await sign_up()


@pytest.fixture
async def other_client(sign_up: SignUp) -> AsyncClient:
    """A client signed in to another account."""
    return await sign_up()


@pytest.fixture
async def admin(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client signed in as an administrator."""
    headers = await accounts_of(app).create_account(app, random_email(), admin=True)
    async with connect(app, headers=headers) as client:
        yield client


@pytest.fixture
async def api_key_client(client: AsyncClient, app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client with an API key of the account of `client`, with the scopes of all features except
    the one that has the accounts."""
    headers = await accounts_of(app).create_api_key(app, client.headers)
    async with connect(app, headers=headers) as robot:
        yield robot
