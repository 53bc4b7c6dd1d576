"""The unit of work of a request: a 2xx means committed, and trouble is told, not waited out."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from httpx import AsyncClient, Response
from sqlalchemy import event, text
from sqlalchemy.engine import make_url

from shared import database
from shared.database import (
    ReadSession,
    Snapshot,
    WriteSession,
    database_of,
    reading,
    transaction,
)
from shared.errors import Conflict
from shared.settings import Settings
from shared.testing import Server, SignUp, connect
from tests.probing import app_with, problem, shed
from tests.resilience.servers import Proxy

TABLES = """
CREATE TABLE mapped (
    id integer CONSTRAINT uq_mapped_id UNIQUE DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE unmapped (
    id integer CONSTRAINT uq_unmapped_id UNIQUE DEFERRABLE INITIALLY DEFERRED
);
"""
FAILURES = {
    "problem": (Conflict("No"), 409),
    "http": (HTTPException(418, "No"), 418),
    "bug": (RuntimeError("No"), 500),
}

probe = APIRouter(prefix="/probe", tags=["probe"])


@probe.post("/rows/{table}", status_code=201)
async def insert(table: str, session: WriteSession, failing: str | None = None) -> str:
    """Adds a row; the constraint is checked when the transaction commits."""
    await (await session.connection()).execute(text(f"INSERT INTO {table} VALUES (1)"))
    if failing:
        raise FAILURES[failing][0]
    return "added"


@probe.post("/rows-read")
async def insert_reading(session: ReadSession) -> None:
    """Writes where it may only read."""
    await session.fetch(text("INSERT INTO mapped VALUES (1)"))


@probe.post("/rows-snapshot")
async def insert_in_snapshot(session: Snapshot) -> None:
    """Writes where it may only read."""
    async for _ in session.batches(text("INSERT INTO mapped VALUES (1) RETURNING id"), {}, 1):
        pass


@probe.get("/slow")
async def slow(session: ReadSession) -> None:
    """Takes longer than any statement may."""
    await session.fetch(text("SELECT pg_sleep(60)"))


@probe.post("/slow-driver")
async def slow_driver(session: WriteSession) -> None:
    """Takes longer than any statement may, past SQLAlchemy, as COPY does."""
    driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
    await driver.execute("SELECT pg_sleep(60)")


@probe.post("/standing-still")
async def standing_still(session: WriteSession) -> None:
    """Does nothing for longer than a transaction may."""
    await (await session.connection()).execute(text("INSERT INTO mapped VALUES (1)"))
    await asyncio.sleep(1)


@probe.post("/suicide")
async def suicide(session: WriteSession, url: str, *, copy: bool = False) -> str:
    """Loses its connection after the last statement and before the commit."""
    connection = await session.connection()
    pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    await connection.execute(text("INSERT INTO mapped VALUES (1)"))
    await execute(url, f"SELECT pg_terminate_backend({pid}, 10000)")
    await asyncio.sleep(0.1)  # the more likely asyncpg has read what the server said
    if copy:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.copy_to_table("mapped", source=io.BytesIO(b"2\n"))
    return "added"


class Gate:
    """Holds whoever comes in until it is opened."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={
            "database_pool_size": 2,
            "database_pool_timeout": 0.2,
            "database_statement_timeout": 1.0,
            "database_lock_timeout": 0.2,
        }
    )


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture
async def app(settings: Settings, gate: Gate) -> AsyncIterator[FastAPI]:
    router = APIRouter()
    router.include_router(probe)

    @router.get("/probe/held-write", tags=["probe"])
    async def held_write(session: WriteSession) -> None:
        """Holds a connection."""
        await session.connection()
        gate.entered.set()
        await gate.opened.wait()

    @router.get("/probe/held-read", tags=["probe"])
    async def held_read(request: Request) -> None:
        """Holds a connection."""
        async with database_of(request.app).read.connection():
            gate.entered.set()
            await gate.opened.wait()

    @router.get("/probe/held-stream", tags=["probe"])
    async def held_stream(_: Snapshot) -> None:
        """Holds a place for a stream."""
        gate.entered.set()
        await gate.opened.wait()

    assert settings.database_url
    await execute(settings.database_url, TABLES)
    taken = Conflict("This row is there already")
    async with app_with(settings, router, uq_mapped_id=taken) as running:
        yield running


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def count(url: str, table: str = "mapped") -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))
    finally:
        await connection.close()


def unavailable(response: Response) -> str:
    detail = str(problem(response, 503)["detail"])
    assert int(response.headers["retry-after"]) > 0
    return detail


async def test_a_commit_that_fails_is_told_by_its_constraint(
    anonymous: AsyncClient, database_url: str
) -> None:
    assert (await anonymous.post("/probe/rows/mapped")).status_code == 201
    second = await anonymous.post("/probe/rows/mapped")
    assert problem(second, 409)["detail"] == "This row is there already"
    assert await count(database_url) == 1


async def test_a_commit_that_fails_unforeseen_is_never_a_success(
    anonymous: AsyncClient, database_url: str
) -> None:
    assert (await anonymous.post("/probe/rows/unmapped")).status_code == 201
    second = await anonymous.post("/probe/rows/unmapped")
    assert problem(second, 500)["detail"] == "Internal server error"
    assert await count(database_url, "unmapped") == 1


@pytest.mark.parametrize("failing", FAILURES)
async def test_a_failure_of_any_kind_rolls_back(
    anonymous: AsyncClient, database_url: str, failing: str
) -> None:
    response = await anonymous.post("/probe/rows/mapped", params={"failing": failing})
    problem(response, FAILURES[failing][1])
    assert await count(database_url) == 0
    assert (await anonymous.post("/probe/rows/mapped")).status_code == 201


@pytest.mark.parametrize("path", ["/probe/rows-read", "/probe/rows-snapshot"])
async def test_a_read_session_refuses_to_write(
    anonymous: AsyncClient, database_url: str, path: str
) -> None:
    problem(await anonymous.post(path), 500)
    assert await count(database_url) == 0


async def test_a_lock_that_others_hold_is_not_waited_for(
    sign_up: SignUp, database_url: str
) -> None:
    client = await sign_up()
    url = (await client.post("/items", json={"title": "Mug", "price": 1})).headers["location"]
    holder = await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("SELECT * FROM items FOR UPDATE")
        refused = await client.patch(url, json={"price": 2})
    assert "busy" in unavailable(refused)
    assert (await client.patch(url, json={"price": 2})).status_code == 200
    await holder.close()


async def test_a_statement_that_takes_too_long_is_cut_off(anonymous: AsyncClient) -> None:
    assert "too long" in unavailable(await anonymous.get("/probe/slow"))
    assert "too long" in unavailable(await anonymous.post("/probe/slow-driver"))


async def test_a_transaction_that_stands_still_is_ended_with_its_locks(
    settings: Settings, app: FastAPI, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a process that hangs, for one."""
    monkeypatch.setattr(database, "STANDSTILL_SECONDS", 0.2)
    async with app_with(settings, probe) as impatient, connect(impatient) as client:
        assert "lost" in unavailable(await client.post("/probe/standing-still"))
    assert await count(database_url) == 0


async def test_the_server_looks_after_clients_that_say_nothing(app: FastAPI) -> None:
    """Else it would keep the sessions, and the locks, of one that lost its power, for hours."""
    shown = text("SELECT current_setting('tcp_keepalives_idle') AS seconds")
    async with transaction(database_of(app)) as session:
        assert (await (await session.connection()).execute(shown)).scalar_one() == "30"
    assert [row.seconds for row in await reading(database_of(app)).fetch(shown)] == ["30"]


@pytest.mark.parametrize("kind", ["write", "read"])
async def test_a_pool_that_is_exhausted_refuses(
    anonymous: AsyncClient, gate: Gate, kind: str
) -> None:
    holders = [
        asyncio.create_task(anonymous.get(f"/probe/held-{kind}")),
        asyncio.create_task(anonymous.get(f"/probe/held-{kind}")),
    ]
    await gate.entered.wait()
    before = shed("connections")
    refused = await anonymous.get(f"/probe/held-{kind}")
    assert "busy" in unavailable(refused)
    assert shed("connections") == before + 1
    assert (await anonymous.get("/readyz")).status_code == 200
    gate.opened.set()
    assert [(await holder).status_code for holder in holders] == [200, 200]
    assert (await anonymous.get(f"/probe/held-{kind}")).status_code == 200


async def test_streams_are_refused_before_all_connections_are_theirs(
    anonymous: AsyncClient, gate: Gate
) -> None:
    holder = asyncio.create_task(anonymous.get("/probe/held-stream"))
    await gate.entered.wait()
    before = shed("streams")
    refused = await anonymous.get("/probe/held-stream")
    assert "uploads or downloads" in unavailable(refused)
    assert shed("streams") == before + 1
    assert (await anonymous.get("/readyz")).status_code == 200
    gate.opened.set()
    assert (await holder).status_code == 200


async def test_connections_that_the_server_has_closed_cost_no_request(
    sign_up: SignUp, database_url: str
) -> None:
    client = await sign_up()
    item = {"title": "Mug", "price": 1}
    await asyncio.gather(*(client.get("/items") for _ in range(2)))
    await asyncio.gather(*(client.post("/items", json=item) for _ in range(2)))
    await execute(
        database_url,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert (await client.get("/healthz")).status_code == 200
    for _ in range(3):
        assert (await client.get("/items")).status_code == 200
        assert (await client.post("/items", json=item)).status_code == 201


async def test_connections_that_end_as_soon_as_they_are_made(
    app: FastAPI, anonymous: AsyncClient
) -> None:
    """As those to a server that is dying."""

    def end(connection: Any, _record: object) -> None:
        connection.driver_connection.terminate()

    engine = database_of(app).write
    await engine.dispose()
    event.listen(engine.sync_engine, "connect", end)
    assert "cannot be reached" in unavailable(await anonymous.post("/probe/rows/mapped"))
    event.remove(engine.sync_engine, "connect", end)
    assert (await anonymous.post("/probe/rows/mapped")).status_code == 201


async def test_a_connection_lost_before_the_commit_is_no_success(
    anonymous: AsyncClient, database_url: str
) -> None:
    response = await anonymous.post("/probe/suicide", params={"url": database_url})
    assert "connection was lost" in unavailable(response)
    assert await count(database_url) == 0


async def test_a_connection_is_not_used_again_once_a_statement_was_given_up(app: FastAPI) -> None:
    database, me = database_of(app), text("SELECT pg_backend_pid() AS pid")
    [first] = await reading(database).fetch(me)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reading(database).fetch(text("SELECT pg_sleep(0.9)"))
    [second] = await reading(database).fetch(me)
    [again] = await reading(database).fetch(me)
    assert first.pid != second.pid == again.pid
    assert database.read.in_use == 0


async def test_a_copy_to_a_server_that_has_said_goodbye(
    settings: Settings, app: FastAPI, database_url: str
) -> None:
    """Its last words have come, but not yet the end of the connection: asyncpg can then neither
    copy nor roll back."""
    url = make_url(database_url)
    assert url.port
    proxy = Proxy(target=url.port, holds=True)
    listener = await proxy.start()
    way = url.set(port=proxy.port).render_as_string(hide_password=False)
    behind = app_with(settings.model_copy(update={"database_url": way}), probe)
    async with behind as held, connect(held) as client:
        response = await client.post(f"/probe/suicide?copy=true&url={quote(database_url)}")
        assert "connection was lost" in unavailable(response)
        assert await count(database_url) == 0
        assert (await client.post("/probe/rows/mapped")).status_code == 201
        proxy.hang_up()
    listener.close()


async def test_a_database_that_is_gone(sign_up: SignUp, server: Server, database_url: str) -> None:
    client = await sign_up()
    name = database_url.rsplit("/", 1)[1]
    await execute(server.admin_url, f'DROP DATABASE "{name}" WITH (FORCE)')
    assert (await client.get("/healthz")).status_code == 200
    unavailable(await client.get("/items"))
    unavailable(await client.post("/users", json={"email": "ada@example.com", "password": "x" * 9}))


async def test_a_server_that_is_not_there(settings: Settings, unused_tcp_port: int) -> None:
    nowhere = f"postgresql://nobody:nothing@127.0.0.1:{unused_tcp_port}/nothing"
    lost = settings.model_copy(update={"database_url": nowhere})
    async with app_with(lost, probe) as app, connect(app) as client:
        unavailable(await client.get("/probe/slow"))
        unavailable(await client.post("/probe/rows/mapped"))
        unavailable(await client.get("/readyz"))
