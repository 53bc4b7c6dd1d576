"""The sessions of a request: a 2xx means committed; failures and long waits get an error."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from asyncpg import PostgresError
from fastapi import APIRouter, FastAPI, HTTPException, Request
from httpx import ASGITransport, AsyncClient, Response
from sqlalchemy import (
    event,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.db import (
    Database,
    OrmSession,
    ReadSession,
    SnapshotSession,
    WriteSession,
    database,
    database_of,
    sessions,
    write_session_of,
)
from shared.problems import Conflict, Unavailable
from shared.settings import Settings
from tests.app_helpers import app_with, assert_problem, count_shed_requests
from tests.kit import Server, SignUp, connect, eventually, free_port, is_ready, within
from tests.resilience.servers import Proxy

TABLES = """
CREATE TABLE mapped (
    id integer CONSTRAINT uq_mapped_id UNIQUE DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE unmapped (
    id integer CONSTRAINT uq_unmapped_id UNIQUE DEFERRABLE INITIALLY DEFERRED
);
"""
WAITS_AT_COMMIT = """
CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON mapped DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait_at_commit();
"""
# Of this database alone: other tests use the same server.
ADVISORY_LOCK_WAITS = (
    "pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
)
END_OWN_CONNECTION = text("SELECT pg_terminate_backend(pg_backend_pid())")
FAILURES = {
    "problem": (Conflict("No"), 409),
    "http": (HTTPException(418, "No"), 418),
    "bug": (RuntimeError("No"), 500),
}

KINDS: dict[str, Any] = {"write": WriteSession, "orm": OrmSession}
probe = APIRouter(prefix="/probe", tags=["probe"])


class Base(DeclarativeBase):
    """Keeps the table of these tests apart from those of the features."""


class MappedRow(Base):
    __tablename__ = "mapped"

    id: Mapped[int] = mapped_column(primary_key=True)


async def run(session: WriteSession | AsyncSession, sql: str) -> Sequence[Any]:
    """Executes a statement the way this kind of session does, and returns its rows."""
    if isinstance(session, AsyncSession):
        result = await (await session.connection()).execute(text(sql))
        return result.all() if result.returns_rows else []
    return await session.fetch(text(sql))


async def past_sqlalchemy(session: WriteSession | AsyncSession) -> WriteSession:
    return write_session_of(session) if isinstance(session, AsyncSession) else session


def writing_probe(kind: Any) -> APIRouter:
    """Returns routes that write in sessions of this kind."""
    probe = APIRouter()

    @probe.post("/rows/{table}", status_code=201)
    async def insert(table: str, session: kind, failing: str | None = None) -> str:
        """Adds a row; the deferred constraint is checked at commit."""
        await run(session, f"INSERT INTO {table} VALUES (1)")
        if failing:
            raise FAILURES[failing][0]
        return "added"

    @probe.post("/swallow")
    async def swallow(session: kind) -> str:
        """Ignores the failure of a statement."""
        await run(session, "INSERT INTO mapped VALUES (1)")
        with suppress(PostgresError, DBAPIError):
            await run(session, "SELECT 1 / 0")
        return "added"

    @probe.post("/slow")
    async def slow(session: kind) -> None:
        """Runs a statement that exceeds the statement timeout."""
        await (await past_sqlalchemy(session)).fetch(text("SELECT pg_sleep(60)"))

    @probe.post("/standing-still")
    async def standing_still(session: kind, url: str) -> None:
        """Leaves its transaction idle until the server closes the connection."""
        [[pid]] = await run(session, "INSERT INTO mapped VALUES (1) RETURNING pg_backend_pid()")

        async def ended() -> bool:
            return await count(url, f"pg_stat_activity WHERE pid = {pid}") == 0

        await eventually(ended, "the end of a transaction that stands still")

    @probe.post("/suicide")
    async def suicide(session: kind, url: str, *, copy: bool = False) -> str:
        """Loses its connection after the last statement and before the commit."""
        [[pid]] = await run(session, "SELECT pg_backend_pid()")
        await run(session, "INSERT INTO mapped VALUES (1)")
        await execute(url, f"SELECT pg_terminate_backend({pid}, 10000)")
        # By then asyncpg has probably read the server's error; if not, the response is the same.
        await asyncio.sleep(0.1)
        if copy:
            await (await past_sqlalchemy(session)).copy("mapped", ["id"], [(2,)])
        return "added"

    return probe


for name, kind in KINDS.items():
    probe.include_router(writing_probe(kind), prefix=f"/{name}")


@probe.post("/at-once")
async def at_once(session: WriteSession) -> None:
    """Sends two statements at once on one connection."""
    await asyncio.gather(*(session.fetch(text("SELECT pg_sleep(0.1)")) for _ in range(2)))


@probe.post("/both")
async def both(session: WriteSession, orm: OrmSession, failing: str | None = None) -> list[int]:
    """Writes with the ORM and with statements, each seeing what the other wrote."""
    orm.add(MappedRow(id=1))
    seen = [row.id for row in await session.fetch(text("SELECT id FROM mapped"))]
    await session.execute(text("INSERT INTO mapped VALUES (2)"))
    async with orm.begin_nested() as part:
        orm.add(MappedRow(id=3))
        await orm.flush()
        await part.rollback()
    seen += sorted((await (await orm.connection()).execute(select(MappedRow.id))).scalars())
    if failing:
        raise FAILURES[failing][0]
    return seen


@probe.post("/ends-itself/{method}")
async def ends_itself(orm: OrmSession, method: str) -> None:
    """Commits or rolls back itself."""
    orm.add(MappedRow(id=1))
    await getattr(orm, method)()


@probe.post("/rows-read")
async def insert_reading(session: ReadSession) -> None:
    """Tries to write in a read-only session."""
    await session.fetch(text("INSERT INTO mapped VALUES (1)"))


@probe.post("/rows-snapshot")
async def insert_in_snapshot(session: SnapshotSession) -> None:
    """Tries to write in a read-only session."""
    async for _ in session.batches(text("INSERT INTO mapped VALUES (1) RETURNING id"), {}, 1):
        pass


@probe.get("/slow")
async def slow(session: ReadSession) -> None:
    """Runs a statement that exceeds the statement timeout."""
    await session.fetch(text("SELECT pg_sleep(60)"))


class Gate:
    """Holds requests until it is opened."""

    def __init__(self) -> None:
        self.entered = asyncio.Semaphore(0)
        self.opened = asyncio.Event()

    async def have_entered(self, count: int) -> None:
        """Waits until `count` requests are held."""
        async with within(30, f"{count} requests that hold a connection"):
            for _ in range(count):
                await self.entered.acquire()


@pytest.fixture
def bounds() -> dict[str, float]:
    """Timeouts that a test overrides with values so short that it exceeds them."""
    return {}


@pytest.fixture
def settings(settings: Settings, bounds: dict[str, float]) -> Settings:
    return settings.model_copy(update={"database_pool_size": 2} | bounds)


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture
async def app(settings: Settings, gate: Gate) -> AsyncIterator[FastAPI]:
    router = APIRouter()
    router.include_router(probe)

    @router.get("/probe/held-write", tags=["probe"])
    async def held_write(_: WriteSession) -> None:
        """Holds a connection."""
        gate.entered.release()
        await gate.opened.wait()

    @router.get("/probe/held-orm", tags=["probe"])
    async def held_orm(_: OrmSession) -> None:
        """Holds a connection."""
        gate.entered.release()
        await gate.opened.wait()

    @router.get("/probe/held-read", tags=["probe"])
    async def held_read(request: Request) -> None:
        """Holds a connection."""
        async with database_of(request.app).primary.connection():
            gate.entered.release()
            await gate.opened.wait()

    @router.get("/probe/held-stream", tags=["probe"])
    async def held_stream(_: SnapshotSession) -> None:
        """Holds a stream slot."""
        gate.entered.release()
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
    detail = str(assert_problem(response, 503)["detail"])
    assert int(response.headers["retry-after"]) > 0
    return detail


@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_that_fails_is_told_by_its_constraint(
    anonymous: AsyncClient, database_url: str, kind: str
) -> None:
    assert (await anonymous.post(f"/probe/{kind}/rows/mapped")).status_code == 201
    second = await anonymous.post(f"/probe/{kind}/rows/mapped")
    assert assert_problem(second, 409)["detail"] == "This row is there already"
    assert await count(database_url) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_that_fails_unforeseen_is_never_a_success(
    anonymous: AsyncClient, database_url: str, kind: str
) -> None:
    assert (await anonymous.post(f"/probe/{kind}/rows/unmapped")).status_code == 201
    second = await anonymous.post(f"/probe/{kind}/rows/unmapped")
    assert assert_problem(second, 500)["detail"] == "Internal server error"
    assert await count(database_url, "unmapped") == 1


async def test_a_handler_that_ignores_a_failed_statement_gets_a_500(
    anonymous: AsyncClient, database_url: str
) -> None:
    """PostgreSQL then answers COMMIT with `ROLLBACK`, which is not an error."""
    assert_problem(await anonymous.post("/probe/write/swallow"), 500)
    assert await count(database_url) == 0
    assert (await anonymous.post("/probe/write/rows/mapped")).status_code == 201


async def test_two_statements_at_once_are_a_bug_that_is_told(
    anonymous: AsyncClient, events: list[Mapping[str, Any]]
) -> None:
    assert not (await anonymous.post("/probe/at-once")).is_success
    assert [event["event"] for event in events if event["level"] == "error"]
    assert (await anonymous.post("/probe/write/rows/mapped")).status_code == 201


async def test_statements_and_the_orm_share_one_transaction(
    anonymous: AsyncClient, database_url: str
) -> None:
    assert_problem(await anonymous.post("/probe/both", params={"failing": "problem"}), 409)
    assert await count(database_url) == 0
    response = await anonymous.post("/probe/both")
    assert response.json() == [1, 1, 2], response.text
    assert await count(database_url) == 2


@pytest.mark.parametrize("method", ["commit", "rollback"])
async def test_a_handler_does_not_end_the_transaction_itself(
    anonymous: AsyncClient, database_url: str, events: list[Mapping[str, Any]], method: str
) -> None:
    assert_problem(await anonymous.post(f"/probe/ends-itself/{method}"), 500)
    assert "unhandled_error" in [event["event"] for event in events]
    assert await count(database_url) == 0


async def test_a_connection_returns_to_the_pool_without_orm_state(
    app: FastAPI, anonymous: AsyncClient, database_url: str
) -> None:
    """Neither a transaction nor an isolation level, for the next that use the connection."""
    for path in ("both", "orm/rows/mapped", "both?failing=bug", "write/swallow"):
        await anonymous.post(f"/probe/{path}")
    idle = "pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
    assert await count(database_url, idle) == 0
    assert database_of(app).engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_commit_is_not_cancelled_with_its_caller(
    app: FastAPI, anonymous: AsyncClient, database_url: str
) -> None:
    """A deferred trigger makes the COMMIT wait for a lock that this test holds."""
    holder = await asyncpg.connect(database_url)
    await holder.execute("SELECT pg_advisory_lock(1)")
    await holder.execute(WAITS_AT_COMMIT)
    writing = asyncio.create_task(write_row(app))

    async def is_committing() -> bool:
        return await count(database_url, ADVISORY_LOCK_WAITS) == 1

    await eventually(is_committing, "the COMMIT that waits")
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    pool: Any = database_of(app).engine.pool
    assert pool.checkedout() == 1, "the COMMIT keeps its place in the pool"
    await holder.close()

    async def is_committed() -> bool:
        return await count(database_url) == 1

    await eventually(is_committed, "the COMMIT of the cancelled caller")
    await eventually(lambda: pool.checkedout() == 0, "its place in the pool")
    assert (await anonymous.post("/probe/write/rows/unmapped")).status_code == 201


async def test_a_commit_without_an_end_gives_its_place_back(
    app: FastAPI, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to a server that has vanished: its connection is closed, and no cancel request is sent."""
    monkeypatch.setattr(sessions, "ABANDONED_COMMIT_SECONDS", 0.1)
    holder = await asyncpg.connect(database_url)
    await holder.execute("SELECT pg_advisory_lock(1)")
    await holder.execute(WAITS_AT_COMMIT)
    writing = asyncio.create_task(write_row(app))

    async def is_committing() -> bool:
        return await count(database_url, ADVISORY_LOCK_WAITS) == 1

    await eventually(is_committing, "the COMMIT that waits")
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    pool: Any = database_of(app).engine.pool
    await eventually(lambda: pool.checkedout() == 0, "its place in the pool")
    assert await is_committing(), "the COMMIT was cancelled"
    await holder.close()

    async def is_committed() -> bool:
        return await count(database_url) == 1

    await eventually(is_committed, "the COMMIT of the cancelled caller")


async def write_row(app: FastAPI) -> None:
    async with database_of(app).transaction() as session:
        await session.execute(text("INSERT INTO mapped VALUES (1)"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failing", FAILURES)
async def test_a_failure_of_any_kind_rolls_back(
    anonymous: AsyncClient, database_url: str, failing: str, kind: str
) -> None:
    path = f"/probe/{kind}/rows/mapped"
    response = await anonymous.post(path, params={"failing": failing})
    assert_problem(response, FAILURES[failing][1])
    assert await count(database_url) == 0
    assert (await anonymous.post(path)).status_code == 201


@pytest.mark.parametrize("path", ["/probe/rows-read", "/probe/rows-snapshot"])
async def test_a_read_session_refuses_to_write(
    anonymous: AsyncClient, database_url: str, path: str
) -> None:
    assert_problem(await anonymous.post(path), 500)
    assert await count(database_url) == 0


@pytest.mark.parametrize("bounds", [{"database_lock_timeout": 0.2}])
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


@pytest.mark.parametrize("bounds", [{"database_statement_timeout": 1.0}])
async def test_a_statement_that_takes_too_long_is_cut_off(anonymous: AsyncClient) -> None:
    assert "too long" in unavailable(await anonymous.get("/probe/slow"))
    for kind in KINDS:
        assert "too long" in unavailable(await anonymous.post(f"/probe/{kind}/slow"))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_transaction_that_stands_still_is_ended_with_its_locks(
    settings: Settings, app: FastAPI, database_url: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """For example that of a process that hangs."""
    monkeypatch.setattr(database, "IDLE_IN_TRANSACTION_SECONDS", 0.2)
    async with app_with(settings, probe) as impatient, connect(impatient) as client:
        answer = await client.post(f"/probe/{kind}/standing-still", params={"url": database_url})
        assert "lost" in unavailable(answer)
    assert await count(database_url) == 0


async def test_the_server_looks_after_clients_that_say_nothing(app: FastAPI) -> None:
    """Without TCP keepalive, a client that lost power keeps its session and locks for hours."""
    shown = text("SELECT current_setting('tcp_keepalives_idle') AS seconds")
    async with database_of(app).transaction() as session:
        assert [row.seconds for row in await session.fetch(shown)] == ["30"]
    assert [row.seconds for row in await database_of(app).read().fetch(shown)] == ["30"]


@pytest.mark.parametrize("bounds", [{"database_pool_timeout": 0.2}])
@pytest.mark.parametrize("kind", ["write", "orm", "read"])
async def test_a_pool_that_is_exhausted_refuses(
    app: FastAPI, anonymous: AsyncClient, gate: Gate, kind: str
) -> None:
    async with connect(app, "192.0.2.1") as another:
        await _exhaust_pool(anonymous, another, gate, kind)


async def _exhaust_pool(
    anonymous: AsyncClient, another: AsyncClient, gate: Gate, kind: str
) -> None:
    holders = [
        asyncio.create_task(each.get(f"/probe/held-{kind}")) for each in (anonymous, another)
    ]
    await gate.have_entered(2)
    before = count_shed_requests("connections")
    refused = await anonymous.get(f"/probe/held-{kind}")
    assert "busy" in unavailable(refused)
    assert count_shed_requests("connections") == before + 1
    await eventually(lambda: is_ready(anonymous), "readiness", 30)
    gate.opened.set()
    async with within(30, "the answers of those that held a connection"):
        assert [(await holder).status_code for holder in holders] == [200, 200]
    assert (await anonymous.get(f"/probe/held-{kind}")).status_code == 200


@pytest.mark.parametrize("bounds", [{"database_pool_timeout": 0.2}])
async def test_streams_are_refused_before_all_connections_are_theirs(
    app: FastAPI, anonymous: AsyncClient, gate: Gate
) -> None:
    holder = asyncio.create_task(anonymous.get("/probe/held-stream"))
    await gate.have_entered(1)
    before = count_shed_requests("streams")
    elsewhere = ASGITransport(app, client=("192.0.2.1", 1))
    async with AsyncClient(transport=elsewhere, base_url="http://test") as other:
        refused = await other.get("/probe/held-stream")
    assert "uploads or downloads" in unavailable(refused)
    assert count_shed_requests("streams") == before + 1
    refused = await anonymous.get("/probe/held-stream")
    assert "of your requests" in assert_problem(refused, 429)["detail"]
    assert refused.headers["retry-after"] == "1"
    await eventually(lambda: is_ready(anonymous), "readiness", 30)
    gate.opened.set()
    async with within(30, "the answer of the stream"):
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


@pytest.mark.parametrize("kind", KINDS)
async def test_connections_that_end_as_soon_as_they_are_made(
    app: FastAPI, anonymous: AsyncClient, kind: str
) -> None:
    """As those to a server that is crashing."""

    def end(connection: Any, _record: object) -> None:
        connection.driver_connection.terminate()

    engine = database_of(app).engine
    await engine.dispose()
    event.listen(engine.sync_engine, "connect", end)
    path = f"/probe/{kind}/rows/mapped"
    assert "cannot be reached" in unavailable(await anonymous.post(path))
    event.remove(engine.sync_engine, "connect", end)
    assert (await anonymous.post(path)).status_code == 201


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_lost_before_the_commit_is_no_success(
    anonymous: AsyncClient, database_url: str, kind: str
) -> None:
    response = await anonymous.post(f"/probe/{kind}/suicide", params={"url": database_url})
    assert "connection was lost" in unavailable(response)
    assert await count(database_url) == 0


async def read(database: Database) -> None:
    await database.read().fetch(END_OWN_CONNECTION)


async def write(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(END_OWN_CONNECTION)


async def write_by_orm(database: Database) -> None:
    async with database.orm_transaction() as session:
        await (await session.connection()).execute(END_OWN_CONNECTION)


@pytest.mark.parametrize("use", [read, write, write_by_orm])
async def test_a_connection_that_the_server_ends_is_no_bug_of_a_task(
    app: FastAPI, use: Callable[[Database], Awaitable[None]]
) -> None:
    """A task gets the problem that a request is answered with."""
    with pytest.raises(Unavailable):
        await use(database_of(app))


async def test_a_transaction_that_does_not_begin_is_no_bug(
    app: FastAPI, sign_up: SignUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler that has no server, and yet answers a ROLLBACK."""
    client = await sign_up()
    monkeypatch.setattr(sessions, "BEGIN_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(database_of(app), "_begin", "BEGIN; SELECT pg_sleep(60)")
    assert_problem(await client.post("/items", json={"title": "Mug", "price": 1}), 503)


async def test_a_connection_is_not_used_again_once_a_statement_was_given_up(app: FastAPI) -> None:
    database = database_of(app)
    sleeping = text(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'active' AND query LIKE 'SELECT pg_sleep%'"
    )
    given_up = asyncio.create_task(database.read().fetch(text("SELECT pg_sleep(60)")))

    async def pid_of_given_up() -> int | None:
        async with database.transaction() as session:
            pid: int | None = await session.fetch_value(sleeping)
        return pid

    pid = await eventually(pid_of_given_up, "the statement that will be given up", 30)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    for _ in range(3):
        assert await database.read().fetch_value(text("SELECT pg_backend_pid()")) != pid
    assert database.primary.in_use == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_copy_to_a_server_that_has_closed_the_connection(
    settings: Settings, app: FastAPI, database_url: str, kind: str
) -> None:
    """The server's final error has arrived, but the connection is not closed yet.

    asyncpg can then neither copy nor roll back.
    """
    url = make_url(database_url)
    assert url.port
    proxy = Proxy(target=url.port, hides_closing=True)
    listener = await proxy.start()
    way = url.set(port=proxy.port).render_as_string(hide_password=False)
    behind = app_with(settings.model_copy(update={"database_url": way}), probe)
    async with behind as held, connect(held) as client:
        response = await client.post(f"/probe/{kind}/suicide?copy=true&url={quote(database_url)}")
        assert "connection was lost" in unavailable(response)
        assert await count(database_url) == 0
        assert (await client.post(f"/probe/{kind}/rows/mapped")).status_code == 201
        proxy.reset_connections()
    listener.close()


async def test_a_database_that_is_gone(sign_up: SignUp, server: Server, database_url: str) -> None:
    client = await sign_up()
    name = make_url(database_url).database
    await execute(server.admin_url, f'DROP DATABASE "{name}" WITH (FORCE)')
    assert (await client.get("/healthz")).status_code == 200
    unavailable(await client.get("/items"))
    unavailable(await client.post("/users", json={"email": "ada@example.com", "password": "x" * 9}))


async def test_a_server_that_is_not_there(settings: Settings) -> None:
    nowhere = f"postgresql://nobody:nothing@127.0.0.1:{free_port()}/nothing"
    lost = settings.model_copy(update={"database_url": nowhere})
    async with app_with(lost, probe) as app, connect(app) as client:
        unavailable(await client.get("/probe/slow"))
        for kind in KINDS:
            unavailable(await client.post(f"/probe/{kind}/rows/mapped"))
        unavailable(await client.get("/readyz"))


async def test_no_statement_is_compiled(app: FastAPI) -> None:
    """By default PostgreSQL compiles those that look costly, and takes longer for it than for
    most of them."""
    shown = text("SHOW jit")
    async with database_of(app).transaction() as session:
        assert await session.fetch_value(shown) == "off"
    assert await database_of(app).read().fetch_value(shown) == "off"
