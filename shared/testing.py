"""The test kit, a pytest plugin: a real database for each test, and clients that speak HTTP.

Each test gets its own clone of a migrated template database, so that commits, races and
notifications are real. The server is the one of `APP_TEST_DATABASE_URL`, else a container
where a Docker daemon answers, else the embedded PostgreSQL.
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from app.main import create_app
from shared.embedded import DISPOSABLE, embedded_postgres, ensure_database
from shared.features import Feature, find_features, with_dependencies
from shared.migrations import upgrade
from shared.settings import Settings

IMAGE = "pgvector/pgvector:pg17"
PASSWORD = "a long enough password"


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server, with the template that each test's database is cloned from."""

    name: str
    admin_url: str
    template: str

    def url(self, database: str) -> str:
        return make_url(self.admin_url).set(database=database).render_as_string(hide_password=False)


SERVER = pytest.StashKey[Server]()
CLEANUP = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--feature", help="Test with this feature and its dependencies alone")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist uses the controller's server
        config.stash[SERVER] = Server(**config.workerinput["server"])
    elif not config.option.collectonly:
        config.stash[CLEANUP] = ExitStack()
        config.stash[SERVER] = config.stash[CLEANUP].enter_context(_server(_features(config)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    server = node.config.stash[SERVER]
    node.workerinput["server"] = vars(server)


def pytest_unconfigure(config: pytest.Config) -> None:
    if CLEANUP in config.stash:
        config.stash[CLEANUP].close()


def pytest_report_header(config: pytest.Config) -> str:
    return f"database: {config.stash[SERVER].name}" if SERVER in config.stash else "database: none"


def _features(config: pytest.Config) -> tuple[Feature, ...]:
    only = config.getoption("--feature")
    return with_dependencies(find_features(), only) if only else find_features()


@contextmanager
def _server(features: tuple[Feature, ...]) -> Iterator[Server]:
    """Starts or finds a server, makes the migrated template, and drops it at the end."""
    with ExitStack() as stack:
        if url := os.environ.get("APP_TEST_DATABASE_URL"):
            name = "APP_TEST_DATABASE_URL"
        elif _docker_answers():
            name, url = f"container {IMAGE}", stack.enter_context(_container())
        else:
            name, url = "embedded PostgreSQL", stack.enter_context(_embedded())
        server = Server(name, url, f"template_{secrets.token_hex(6)}")
        asyncio.run(_execute(url, f'CREATE DATABASE "{server.template}"'))
        stack.callback(lambda: asyncio.run(_drop(url, server.template)))
        upgrade(server.url(server.template), [feature.name for feature in features])
        yield server


def _docker_answers() -> bool:
    import docker  # a dependency of testcontainers, wanted only here

    try:
        client = docker.from_env(timeout=3)
        return bool(client.ping())
    except docker.errors.DockerException:
        return False


@contextmanager
def _container() -> Iterator[str]:
    from testcontainers.postgres import PostgresContainer

    fast = "postgres -c fsync=off -c full_page_writes=off -c max_connections=200"
    with PostgresContainer(IMAGE, driver=None).with_command(fast) as container:
        yield container.get_connection_url()


@contextmanager
def _embedded() -> Iterator[str]:
    memory = Path("/dev/shm")  # noqa: S108  # a clone of a database there takes 12 ms instead of 200
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent, prefix="tessera-test-") as folder:
        Path(folder).chmod(0o755)
        with embedded_postgres(Path(folder), DISPOSABLE) as server:
            yield asyncio.run(ensure_database(server, "postgres"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _drop(url: str, database: str) -> None:
    await _execute(url, f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    """The PostgreSQL server under test."""
    return pytestconfig.stash[SERVER]


@pytest.fixture
async def database_url(server: Server) -> AsyncIterator[str]:
    """A database of the test's own: migrated, empty, and dropped at the end."""
    name = f"test_{secrets.token_hex(8)}"
    clone = f'CREATE DATABASE "{name}" TEMPLATE "{server.template}" STRATEGY file_copy'
    await _execute(server.admin_url, clone)
    yield server.url(name)
    await _drop(server.admin_url, name)


@pytest.fixture
def settings(database_url: str) -> Settings:
    """The settings of the application under test. Override to change one."""
    return Settings(
        _env_file=None,
        env="test",
        database_url=database_url,
        database_pool_size=10,
        secret_key=SecretStr("a secret for tests, 32 bytes or more"),
        log_level="warning",
    )


@pytest.fixture
async def app(settings: Settings, pytestconfig: pytest.Config) -> AsyncIterator[FastAPI]:
    """The running application. Its background tasks do not run by themselves: `drain` them."""
    application = create_app(settings, _features(pytestconfig), run_tasks=False)
    async with application.router.lifespan_context(application):
        yield application


@asynccontextmanager
async def connect(app: FastAPI, **options: Any) -> AsyncIterator[AsyncClient]:
    """An HTTP client of the application, without a server in between."""
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://testserver", **options) as client:
        yield client


@pytest.fixture
async def anonymous(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client that has not signed in."""
    async with connect(app) as client:
        yield client


SignUp = Callable[..., Awaitable[AsyncClient]]


@pytest.fixture
async def sign_up(app: FastAPI) -> AsyncIterator[SignUp]:
    """Makes a client that is signed in to a new account: `await sign_up("ada@example.com")`."""
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
    form = {"grant_type": "password", "username": email, "password": PASSWORD}
    granted = await client.post("/auth/token", data=form)
    assert granted.status_code == 200, granted.text
    client.headers["Authorization"] = f"Bearer {granted.json()['access_token']}"


@pytest.fixture
async def client(sign_up: SignUp) -> AsyncClient:
    """A client signed in to an account."""
    return await sign_up()


@pytest.fixture
async def other(sign_up: SignUp) -> AsyncClient:
    """A client signed in to another account."""
    return await sign_up()
