"""Connections to a list of hosts: to the first that has the role, each host with its own time."""

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import APIRouter
from sqlalchemy import text

from shared.db import Database, pool
from shared.db.connecting import NoHostInRole, ServerRole, connector
from shared.postgres_urls import hosts_of
from shared.problems import Unavailable
from shared.settings import ConfigurationError, Settings, load_settings
from tests.app_helpers import app_with
from tests.kit import connect, eventually, free_port, sign_in, within
from tests.resilience.servers import Proxy

SELECT_PID = text("SELECT pg_backend_pid()")
URLS: dict[str, list[dict[str, Any]]] = {
    "postgresql://u:p@h/db": [{"host": "h"}],
    "postgres://u:p@h:6432/db?sslmode=require": [{"host": "h", "port": 6432}],
    "postgresql://u:p@h1:5432,h2:5433/db": [
        {"host": "h1", "port": 5432},
        {"host": "h2", "port": 5433},
    ],
    "postgresql://u:p@h1,h2/db?target_session_attrs=primary": [{"host": "h1"}, {"host": "h2"}],
    "postgresql://u:p@/db?host=h1,h2&port=1,2": [
        {"host": "h1", "port": 1},
        {"host": "h2", "port": 2},
    ],
    "postgresql:///db?host=/run/postgresql&port=5433": [{"host": "/run/postgresql", "port": 5433}],
    "postgresql://%2Frun%2Fpostgresql/db": [{"host": "/run/postgresql"}],
    "postgresql://u:p%2Cq@[::1]:5432/db": [{"host": "::1", "port": 5432}],
    "postgresql:///db": [{}],
    "postgresql://?service=tessera": [{}],
}


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A host that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def with_hosts(url: str, *ports: int) -> str:
    parts = urlsplit(url)
    credentials = parts.netloc.rpartition("@")[0]
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return parts._replace(netloc=f"{credentials}@{hosts}").geturl()


def port_of(url: str) -> int:
    return urlsplit(url).port or 5432


@pytest.mark.parametrize(("url", "hosts"), URLS.items())
def test_the_urls_of_libpq_are_taken(
    url: str, hosts: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_DATABASE_URL", url)
    assert load_settings(Settings).database_url == url
    assert hosts_of(url) == hosts


@pytest.mark.parametrize(
    "url",
    ["mysql://h/db", "h:5432/db", "postgresql://h:port/db", "postgresql://h1,h2/db?port=1,2,3"],
)
def test_another_url_stops_the_start(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_DATABASE_URL", url)
    with pytest.raises(ConfigurationError, match=r"APP_DATABASE_URL: must be a URL like"):
        load_settings(Settings)


async def test_a_silent_host_takes_its_own_time_and_is_then_tried_last(
    database_url: str, silent_port: int
) -> None:
    url = with_hosts(database_url, silent_port, port_of(database_url))
    open_connection = connector(url, ServerRole.READ_WRITE, timeout=1.0)
    async with within(20, "a connection past the silent host"):
        first = await open_connection()
    started = time.monotonic()
    second = await open_connection()
    assert time.monotonic() - started < 0.9, "the host that answered is tried first"
    for connection in (first, second):
        await connection.close()


async def test_a_host_that_its_caller_does_not_wait_for_is_tried_last(
    database_url: str, silent_port: int
) -> None:
    url = with_hosts(database_url, silent_port, port_of(database_url))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await connector(url, ServerRole.PRIMARY)()
    connection = await connector(url, ServerRole.READ_WRITE, timeout=30.0)()
    await connection.close()


async def test_the_kernel_notices_that_a_host_has_vanished(database_url: str) -> None:
    """Else a client that waits for an answer, with nothing left to send, would wait for ever."""
    connection: Any = await connector(database_url, None)()
    sock = connection._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    await connection.close()


async def test_a_host_without_the_role_is_passed_over(database_url: str) -> None:
    port = port_of(database_url)
    with pytest.raises(NoHostInRole, match="no host has the role standby"):
        await connector(database_url, ServerRole.STANDBY)()
    with pytest.raises(OSError, match=str(nowhere := free_port())):
        await connector(with_hosts(database_url, nowhere, nowhere), None)()
    connection = await connector(with_hosts(database_url, nowhere, port), ServerRole.PRIMARY)()
    await connection.close()


async def test_each_use_asks_for_its_own_role_whatever_the_url_says(
    database_url: str, settings: Settings
) -> None:
    """With `read-write` in the URL each read failed, as the read pool is read-only by itself."""
    asking = f"{database_url}{'&' if '?' in database_url else '?'}target_session_attrs=read-write"
    settings = settings.model_copy(update={"database_url": asking})
    async with app_with(settings, APIRouter()) as app, connect(app) as client:
        await sign_in(app, client, "ada@example.com")
        assert (await client.post("/items", json={"title": "Mug", "price": 1})).status_code == 201
        for path in ("/items", "/items/export", "/readyz"):
            assert (await client.get(path)).status_code == 200


async def test_what_waits_for_a_pooler_that_hangs_ends_when_writes_go_to_another(
    database_url: str, settings: Settings
) -> None:
    """Its kernel may still acknowledge packets: then nothing else ends an import for 1,000 s. Two
    servers are told apart as two poolers are, by another key."""
    settings = settings.model_copy(update={"database_direct_url": database_url})
    ways = [Proxy(target=port_of(database_url)) for _ in range(2)]
    listeners = [await way.start() for way in ways]
    database = Database(with_hosts(database_url, *(way.port for way in ways)), settings)
    begun, hangs = asyncio.Barrier(3), asyncio.Event()

    async def write() -> None:
        async with database.transaction() as session:
            await begun.wait()
            await hangs.wait()
            await session.fetch(SELECT_PID)

    async def export() -> None:
        async with database.snapshot() as session:
            await begun.wait()
            await hangs.wait()
            async for _ in session.batches(SELECT_PID, {}, 1):
                pass

    waiting = asyncio.gather(write(), export(), return_exceptions=True)
    await begun.wait()
    ways[0].freeze()
    listeners[0].close()
    hangs.set()
    async with within(20, "the end of what waits"):
        async with database.transaction() as session:
            await session.fetch(SELECT_PID)
        assert [type(error) for error in await waiting] == [Unavailable, Unavailable]
    await database.dispose()
    for way in ways:
        way.reset_connections()
    listeners[1].close()


async def test_another_address_of_the_same_server_ends_nothing(
    database_url: str, settings: Settings
) -> None:
    """A host that fails once is tried last from then on, though its connections live."""
    way = Proxy(target=port_of(database_url))
    listener = await way.start()
    database = Database(with_hosts(database_url, way.port, port_of(database_url)), settings)
    async with database.direct() as direct, database.transaction() as session:
        read = await database.read().fetch_value(SELECT_PID)
        listener.close()
        async with database.transaction() as other:
            assert await other.fetch_value(SELECT_PID) != await session.fetch_value(SELECT_PID)
        assert await database.read().fetch_value(SELECT_PID) == read
        assert await direct.fetchval("SELECT 1") == 1
    await database.dispose()
    way.reset_connections()


@pytest.mark.parametrize("seconds", [300.0, 0.3])
async def test_connections_are_replaced_at_their_greatest_age(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """So that a name which has moved is followed, though the former server lives."""
    monkeypatch.setattr(pool, "MAX_AGE_SECONDS", seconds)
    database = Database(database_url, settings)

    async def pids() -> set[int]:
        async with database.transaction() as session:
            written: int = await session.fetch_value(SELECT_PID)
        return {written, await database.read().fetch_value(SELECT_PID)}

    async def are_replaced() -> bool:
        return not before & await pids()

    before = await pids()
    if seconds < 1:
        await eventually(are_replaced, "other connections")
    else:
        assert await pids() == before
    await database.dispose()
