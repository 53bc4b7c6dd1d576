"""Reads use a streaming replica, with read-your-writes: after a write the client reads the
primary."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from app.embedded import EmbeddedServer, ensure_database
from app.main import create_app
from app.migrations import upgrade
from app.task_runner import periodic_tasks_of
from shared import cache
from shared.db import database_of
from shared.settings import Settings
from tests.app_helpers import capture_log
from tests.kit import PASSWORD, Redis, connect, eventually, free_port, sign_in, within
from tests.resilience.pairs import running_primary, running_standby
from tests.resilience.servers import Proxy

pytestmark = pytest.mark.verify

WITHIN_SECONDS = 30.0
MUG = {"title": "Mug", "price": 1}
COUNT_READERS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tessera'"
SELECT_CHECKS = """
SELECT pid, query_start FROM pg_stat_activity
WHERE application_name = 'tessera' AND query LIKE '%pg_last_wal_replay_lsn%'
"""
CAUGHT_UP = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    with running_primary() as primary, running_standby(primary) as replica:
        upgrade(asyncio.run(ensure_database(primary, "tessera")))
        yield primary, replica


@pytest.fixture
def database_url(servers: tuple[EmbeddedServer, EmbeddedServer]) -> str:
    return servers[0].url("tessera")


@pytest.fixture
def settings(settings: Settings, servers: tuple[EmbeddedServer, EmbeddedServer]) -> Settings:
    update = {"database_replica_url": servers[1].url("tessera"), "database_replica_lag": 60.0}
    return settings.model_copy(update=update)


@pytest.fixture
async def replica(
    servers: tuple[EmbeddedServer, EmbeddedServer],
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(servers[1].url())
    yield connection
    await connection.execute("SELECT pg_wal_replay_resume()")
    await connection.close()


async def caught_up(primary_url: str, replica: "asyncpg.Connection[asyncpg.Record]") -> None:
    primary = await asyncpg.connect(primary_url)
    now = await primary.fetchval("SELECT pg_current_wal_lsn()::text")
    await primary.close()
    await eventually(
        lambda: replica.fetchval(CAUGHT_UP, now), f"{now} at the replica", WITHIN_SECONDS
    )


async def start_app(settings: Settings, stack: AsyncExitStack) -> tuple[FastAPI, AsyncClient]:
    """Starts an application with its own pools and in-memory state, like a separate process.

    Returns it with a client."""
    app = create_app(settings, run_tasks=False)
    await stack.enter_async_context(app.router.lifespan_context(app))
    return app, await stack.enter_async_context(connect(app))


async def until_status(client: AsyncClient, path: str, status: int) -> None:
    async def has_it() -> bool:
        return (await client.get(path)).status_code == status

    await eventually(has_it, f"a {status} for {path}", WITHIN_SECONDS)


async def until_replica_is_read(app: FastAPI, client: AsyncClient) -> None:
    replica = database_of(app).replica
    assert replica

    async def is_read() -> bool:
        assert (await client.get("/items")).status_code == 200
        return bool(replica.pool.connections)

    await eventually(is_read, "a read from the replica", WITHIN_SECONDS)


@pytest.mark.parametrize(("shared", "elsewhere"), [(False, 404), (True, 200)])
async def test_what_a_client_wrote_it_reads_although_the_replica_lags(
    settings: Settings,
    database_url: str,
    replica: "asyncpg.Connection[asyncpg.Record]",
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    shared: bool,
    elsewhere: int,
) -> None:
    monkeypatch.setattr(cache, "REDIS_TIMEOUT_SECONDS", 5.0)  # for a busy machine
    if shared:
        settings = settings.model_copy(update={"redis_url": redis.url})
    async with AsyncExitStack() as stack:
        (app, here), (other, there) = [await start_app(settings, stack) for _ in range(2)]
        await sign_in(app, here, f"{shared}@example.com")
        there.headers["Authorization"] = here.headers["Authorization"]
        await caught_up(database_url, replica)
        await until_replica_is_read(other, there)
        await replica.execute("SELECT pg_wal_replay_pause()")

        kettle, key = {"title": "Kettle", "price": 20}, {"Idempotency-Key": "once"}
        created = await here.post("/items", json=kettle, headers=key)
        item = created.headers["location"]
        assert (await here.get(item)).json()["title"] == "Kettle"
        assert (await here.get("/items/export")).text.count("Kettle") == 1
        assert (await there.get(item)).status_code == elsewhere
        repeated = await there.post("/items", json=kettle, headers=key)
        assert repeated.headers["idempotency-replayed"] == "true"
        assert (await there.get(item)).status_code == 200

        await replica.execute("SELECT pg_wal_replay_resume()")
        await caught_up(database_url, replica)
        assert (await there.get(item)).status_code == 200


async def test_who_has_just_signed_up_reads_the_account_although_the_replica_lags(
    settings: Settings, database_url: str, replica: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    async with AsyncExitStack() as stack:
        _, client = await start_app(settings, stack)
        await replica.execute("SELECT pg_wal_replay_pause()")
        account = {"email": "new@example.com", "password": PASSWORD}
        assert (await client.post("/users", json=account)).status_code == 201
        form = {"grant_type": "password", "username": "new@example.com", "password": PASSWORD}
        token = (await client.post("/auth/token", data=form)).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        assert (await client.get("/users/me")).json()["email"] == "new@example.com"


async def test_periodic_tasks_run_where_a_replica_is_read_from(settings: Settings) -> None:
    """A replica has no UNLOGGED tables."""
    app = create_app(settings, run_tasks=False)
    async with app.router.lifespan_context(app):
        for task in periodic_tasks_of(app.state.features):
            await task.run(app)


async def test_a_silent_replica_costs_a_moment(
    settings: Settings,
    database_url: str,
    servers: tuple[EmbeddedServer, EmbeddedServer],
    replica: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """It neither answers nor closes a connection: its waiting reads go to the primary."""
    proxy = Proxy(target=servers[1].port)
    listener = await proxy.start()
    way = EmbeddedServer(proxy.port, servers[1].password).url("tessera")
    settings = settings.model_copy(update={"database_replica_url": f"{way}?sslmode=disable"})
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        stack.callback(proxy.reset_connections)
        (app, here), (other, there) = [await start_app(settings, stack) for _ in range(2)]
        log = capture_log()
        await sign_in(app, here, "silent@example.com")
        there.headers["Authorization"] = here.headers["Authorization"]
        await caught_up(database_url, replica)
        await until_replica_is_read(other, there)
        await replica.execute("SELECT pg_wal_replay_pause()")
        item = (await here.post("/items", json=MUG)).headers["location"]
        await until_status(there, item, 404)  # from the lagging replica

        proxy.freeze()
        async with within(10, "the answer of each request"):
            answers = await asyncio.gather(*(there.get(item) for _ in range(30)))
        assert {answer.status_code for answer in answers} == {200}
        async with within(2, "an answer without waiting"):
            assert (await there.get(item)).status_code == 200
        assert log.getvalue().count("replica_away") == 1

        proxy.thaw()
        await until_status(there, item, 404)


async def test_a_replica_that_lags_too_far_is_not_read_from(
    settings: Settings, database_url: str, replica: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Own writes are remembered for `database_replica_lag` seconds, and would then not be found."""
    settings = settings.model_copy(update={"database_replica_lag": 1.0, "log_level": "info"})
    async with AsyncExitStack() as stack:
        app, client = await start_app(settings, stack)
        log = capture_log()
        await sign_in(app, client, "late@example.com")
        await caught_up(database_url, replica)
        await until_replica_is_read(app, client)
        await replica.execute("SELECT pg_wal_replay_pause()")
        item = (await client.post("/items", json=MUG)).headers["location"]

        async def is_away() -> bool:
            await client.get(item)
            return "lags by more than 1 s" in log.getvalue()

        await eventually(is_away, "that the replica is not read from", WITHIN_SECONDS)
        checks: set[asyncpg.Record] = set()

        async def one_connection_checks() -> bool:
            assert (await client.get(item)).status_code == 200
            checks.update(await replica.fetch(SELECT_CHECKS))
            return max(Counter(pid for pid, _ in checks).values(), default=0) > 2

        await eventually(one_connection_checks, "checks by one connection", WITHIN_SECONDS)

        await replica.execute("SELECT pg_wal_replay_resume()")

        async def is_back() -> bool:
            assert (await client.get(item)).status_code == 200
            return "replica_back" in log.getvalue()

        await eventually(is_back, "that the replica is read from", WITHIN_SECONDS)


@pytest.mark.parametrize("was_idle", [True, False])
async def test_a_process_that_has_not_read_for_a_while_reads_from_no_replica_that_lags(
    settings: Settings,
    database_url: str,
    replica: "asyncpg.Connection[asyncpg.Record]",
    monkeypatch: pytest.MonkeyPatch,
    was_idle: bool,
) -> None:
    monkeypatch.setattr("shared.db.replica.WATCHED_SECONDS", 0.2)
    settings = settings.model_copy(update={"database_replica_lag": 1.0})
    async with AsyncExitStack() as stack:
        (app, here), (other, there) = [await start_app(settings, stack) for _ in range(2)]
        await sign_in(app, here, f"idle-{was_idle}@example.com")
        there.headers["Authorization"] = here.headers["Authorization"]
        await caught_up(database_url, replica)
        if was_idle:
            assert (await there.get("/items")).status_code == 200
            idle = database_of(other).replica
            assert idle
            assert idle._watcher
            async with within(WITHIN_SECONDS, "the end of the checks"):
                await idle._watcher
        await replica.execute("SELECT pg_wal_replay_pause()")
        item = (await here.post("/items", json=MUG)).headers["location"]
        monkeypatch.undo()
        for _ in range(20):
            assert (await there.get(item)).status_code == 200
            await asyncio.sleep(0.1)


async def test_a_replica_that_was_promoted_is_not_read_from(
    settings: Settings, servers: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    with running_standby(servers[0]) as promoted:
        url = promoted.url("tessera")
        settings = settings.model_copy(update={"database_replica_url": url})
        async with AsyncExitStack() as stack:
            (app, here), (other, there) = [await start_app(settings, stack) for _ in range(2)]
            log = capture_log()
            await sign_in(app, here, "promoted@example.com")
            there.headers["Authorization"] = here.headers["Authorization"]
            await until_replica_is_read(other, there)
            connection = await asyncpg.connect(promoted.url())
            await connection.execute("SELECT pg_promote()")
            await connection.close()
            item = (await here.post("/items", json=MUG)).headers["location"]
            await until_status(there, item, 200)
            assert "it has been promoted" in log.getvalue()
            for _ in range(10):
                assert (await there.get(item)).status_code == 200


async def test_another_replica_is_read_from_once_one_was_promoted(
    settings: Settings,
    servers: tuple[EmbeddedServer, EmbeddedServer],
    replica: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    with running_standby(servers[0]) as promoted:
        hosts = f":{promoted.port},127.0.0.1:{servers[1].port}/"
        url = promoted.url("tessera").replace(f":{promoted.port}/", hosts)
        settings = settings.model_copy(update={"database_replica_url": url})
        async with AsyncExitStack() as stack:
            (app, here), (other, there) = [await start_app(settings, stack) for _ in range(2)]
            await sign_in(app, here, "another@example.com")
            there.headers["Authorization"] = here.headers["Authorization"]
            await until_replica_is_read(other, there)
            connection = await asyncpg.connect(promoted.url())
            assert await connection.fetchval(COUNT_READERS)
            await connection.execute("SELECT pg_promote()")
            await connection.close()

            async def is_read_from() -> bool:
                assert (await there.get("/items")).status_code == 200
                return bool(await replica.fetchval(COUNT_READERS))

            await eventually(is_read_from, "a read from the other replica", WITHIN_SECONDS)


async def test_the_primary_reads_while_the_replica_is_away(
    settings: Settings,
    database_url: str,
    servers: tuple[EmbeddedServer, EmbeddedServer],
    replica: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    proxy = Proxy(target=servers[1].port)
    listener = await proxy.start()
    way = EmbeddedServer(proxy.port, servers[1].password).url("tessera")
    settings = settings.model_copy(update={"database_replica_url": way})
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        (app, here), (other, there) = [await start_app(settings, stack) for _ in range(2)]
        log = capture_log()
        await sign_in(app, here, "away@example.com")
        there.headers["Authorization"] = here.headers["Authorization"]
        await caught_up(database_url, replica)
        await until_replica_is_read(other, there)
        await replica.execute("SELECT pg_wal_replay_pause()")
        kettle, key = {"title": "Kettle", "price": 20}, {"Idempotency-Key": "once"}
        created = await here.post("/items", json=kettle, headers=key)
        item = created.headers["location"]
        await until_status(there, item, 404)  # from the lagging replica

        proxy.target = free_port()
        proxy.reset_connections()
        await until_status(there, item, 200)
        paths = [item, "/items", "/items/export", "/readyz"] * 4
        async with within(60, "the answer of each request"):
            answers = await asyncio.gather(*map(there.get, paths))
        assert {answer.status_code for answer in answers} == {200}
        assert log.getvalue().count("replica_away") == 1
        assert "tessera_replica_fallbacks_total " in (await there.get("/metrics")).text

        proxy.target = servers[1].port
        await until_status(there, item, 404)
        proxy.reset_connections()
