"""PostgreSQL: an engine to write, pools to read, and the unit of work of a request.

A *write session* is one transaction: it commits once, after the handler has returned and
before the first byte of the response leaves, so that a 2xx means committed. So is an *ORM
session*, whose objects SQLAlchemy keeps track of, at the price of a few statements; a request
has one or the other, on connections of the same pool. A *read session* has no transaction at
all: every statement sees the newest snapshot, and the server refuses writes. It goes to the
replica where one is set, but for clients who have just written: they read what they wrote,
from the primary.

Behind a pooler in transaction mode nothing outlasts a transaction: there, each statement of a
read session is one too, read-only, and each transaction sets its own timeouts.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from asyncpg import Connection, InterfaceError, PostgresError, connect
from fastapi import Depends, FastAPI, Request
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DisconnectionError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.errors import Unavailable
from shared.reading import (
    CLOSE_TIMEOUT_SECONDS,
    CONNECT_TIMEOUT_SECONDS,
    Reading,
    ReadPool,
    Row,
    SnapshotReading,
    Unreachable,
    take_place,
)
from shared.reading import CONNECT_ERRORS as READ_CONNECT_ERRORS
from shared.reading import Connection as ReadConnection
from shared.replica import Presence, RecentWriters
from shared.settings import Settings
from shared.writing import Writing, unit_of_work

# SQLAlchemy wraps only what comes later. It gives up with an InvalidRequestError where a new
# connection has ended before it could be used.
CONNECT_ERRORS = (*READ_CONNECT_ERRORS, InvalidRequestError)
UNNAMED: Mapping[str, Any] = {
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}
"""What SQLAlchemy is told about prepared statements where a pooler cannot keep them."""
KEEPALIVE: Mapping[str, str] = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""Whoever vanished without closing its connections holds its locks for a minute, not for hours."""
STANDSTILL_SECONDS = 300.0  # for so long a transaction may have no statement under way


@dataclass(frozen=True)
class Database:
    """The engines of one process. `direct_url` is a libpq URL that leads past any pooler.

    `begin` is how write sessions begin their transactions. `read` is the replica's, where one is
    set; `writers` then read from `read_primary`, and so does everybody while the replica is away.
    `probe` has a connection of its own, to ask whether PostgreSQL answers however busy the others
    are. `uploads` and `downloads` are the places for streams, which take their time: fewer than
    there are connections to write and to read.
    """

    direct_url: str
    write: AsyncEngine
    begin: str
    read: ReadPool
    read_primary: ReadPool
    probe: AsyncEngine
    writers: RecentWriters | None
    replica: Presence
    uploads: asyncio.Semaphore
    downloads: asyncio.Semaphore

    @property
    def read_pools(self) -> Mapping[str, ReadPool]:
        """By name, each once."""
        primary = {"read_primary": self.read_primary} if self.writers else {}
        return {"read": self.read} | primary

    async def dispose(self) -> None:
        """Closes all connections; a server that does not answer is not waited for."""
        for pool in self.read_pools.values():
            await pool.close()
        for engine in (self.write, self.probe):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await engine.dispose()
        if self.writers:
            await self.writers.close()


def open_database(url: str, settings: Settings) -> Database:
    """Makes the engine and the pools. Connects to nothing: that happens when a session first
    needs it."""
    replica, lag = settings.database_replica_url, settings.database_replica_lag
    primary = _read_pool(url, settings)
    half = max(1, settings.database_pool_size // 2)
    return Database(
        direct_url=settings.database_direct_url or url,
        write=_engine(url, settings, settings.database_pool_size),
        begin="; ".join(filter(None, ("BEGIN", _bounds(settings)[1]))),
        read=_read_pool(replica, settings) if replica else primary,
        read_primary=primary,
        probe=_engine(url, settings, 1),
        writers=RecentWriters(settings.redis_url, lag) if replica else None,
        replica=Presence(),
        uploads=asyncio.Semaphore(half),
        downloads=asyncio.Semaphore(half),
    )


def _read_pool(url: str, settings: Settings) -> ReadPool:
    own, each = _bounds(settings)
    server = own if each else own | {"default_transaction_read_only": "on"}
    size, seconds = settings.database_pool_size, settings.database_pool_timeout
    return ReadPool(url, size, seconds, server, each)


def _engine(url: str, settings: Settings, size: int) -> AsyncEngine:
    own, each = _bounds(settings)
    connecting: dict[str, Any] = {
        "timeout": CONNECT_TIMEOUT_SECONDS,
        "server_settings": own,
        "record_class": Row,
    }
    engine = new_engine(
        url,
        connecting | ({"statement_cache_size": 0} if each else {}),
        UNNAMED if each else {},
        pool_size=size,
        max_overflow=0,
        hide_parameters=True,  # in error messages, which are logged
        pool_timeout=settings.database_pool_timeout,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "handle_error", _part_if_stuck)
    if each:
        event.listen(engine.sync_engine, "begin", _beginning_with(each))
    return engine


def _bounds(settings: Settings) -> tuple[dict[str, str], str | None]:
    """The settings of a connection, and the statement that each transaction begins with: behind a
    pooler, whose connections have settings that are not ours, the one has what else the other has.
    """
    own = {"application_name": "tessera"}
    bounds = {
        "statement_timeout": _milliseconds(settings.database_statement_timeout),
        "lock_timeout": _milliseconds(settings.database_lock_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(STANDSTILL_SECONDS),
    }
    if settings.database_direct_url is None:
        return {**own, **KEEPALIVE, **bounds}, None
    each = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in bounds.items())
    return own, f"SELECT {each}"


def new_engine(
    url: str,
    connecting: Mapping[str, Any],
    statements: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncEngine:
    """An engine for a libpq URL, which asyncpg itself reads: it knows `sslmode` and the like."""

    def connection() -> Any:
        dbapi: Any = engine.sync_engine.dialect.dbapi
        creator = partial(connect, url, **connecting)
        return dbapi.connect(async_creator_fn=creator, **(statements or {}))

    shown = make_url(url).set(drivername="postgresql+asyncpg", query={})
    engine = create_async_engine(shown, creator=connection, **options)
    return engine


def _beginning_with(statement: str) -> Callable[[SyncConnection], None]:
    def begin(connection: SyncConnection) -> None:
        connection.exec_driver_sql(statement)

    return begin


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _refuse_closed(connection: Any, record: Any, proxy: Any) -> None:
    # asyncpg knows of a closed socket without asking: a restart of PostgreSQL costs no
    # failed request, and a checkout costs no round trip as `pool_pre_ping` would.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _part_if_stuck(context: ExceptionContext) -> None:
    # A server that ends says so, and then closes the connection. A COPY between the two leaves
    # asyncpg amid an operation for ever: then there is no statement that fails, but the rollback.
    original: BaseException = context.original_exception
    if context.statement is None and isinstance(original.__cause__, InterfaceError):
        context.is_disconnect = True


def database_of(app: FastAPI) -> Database:
    """The database of a running application."""
    database: Database = app.state.database
    return database


@asynccontextmanager
async def transaction(database: Database) -> AsyncIterator[AsyncSession]:
    """An ORM session outside a request: commits at the end, rolls back on any error.

    Raises:
        Unavailable: when no connection can be made.
    """
    async with AsyncSession(database.write, expire_on_commit=False) as session:
        try:
            await session.connection()
        except CONNECT_ERRORS as error:
            raise Unavailable("The database cannot be reached; please try again") from error
        yield session
        await session.commit()


async def statements(session: AsyncSession) -> Writing:
    """A write session in the transaction of an ORM session, whose objects are flushed."""
    connection: Any = await (await session.connection()).get_raw_connection()
    return Writing(connection.driver_connection)


@asynccontextmanager
async def writing(database: Database) -> AsyncIterator[Writing]:
    """A write session outside a request: commits at the end, rolls back on any error.

    Raises:
        Unavailable: there is no connection, or it was lost.
        PostgresError: it cannot be committed.
    """
    try:
        connection = await database.write.raw_connection()
    except CONNECT_ERRORS as error:
        raise Unavailable("The database cannot be reached; please try again") from error
    try:
        driver: Any = connection.driver_connection
        async with unit_of_work(driver, database.begin) as session:
            yield session
    finally:
        connection.close()


def reading(database: Database, request: Request | None = None) -> Reading:
    """A read session, of a request or outside of any."""
    return Reading(partial(_connection, database, request))


@asynccontextmanager
async def snapshot(
    database: Database, request: Request | None = None
) -> AsyncIterator[SnapshotReading]:
    """A read session whose statements all see one snapshot, and whose rows may be streamed.

    Raises:
        Unavailable: there is no connection.
    """
    async with _connection(database, request, snapshot=True) as connection:
        yield SnapshotReading(connection)


def _connection(
    database: Database, request: Request | None, *, snapshot: bool = False
) -> AbstractAsyncContextManager[ReadConnection]:
    if database.writers is None:
        return database.read_primary.connection(snapshot=snapshot)
    return _connection_to_either(database, request, snapshot=snapshot)


@asynccontextmanager
async def _connection_to_either(
    database: Database, request: Request | None, *, snapshot: bool
) -> AsyncIterator[ReadConnection]:
    """To the replica, if this request may read from it and it is there; else to the primary."""
    async with AsyncExitStack() as stack:
        connection: ReadConnection | None = None
        if await _reads_replica(database, request):
            try:
                replica = database.read.connection(snapshot=snapshot)
                connection = await stack.enter_async_context(replica)
                database.replica.met()
            except (Unreachable, PostgresError) as error:
                database.replica.missed(error)
        if connection is None:
            primary = database.read_primary.connection(snapshot=snapshot)
            connection = await stack.enter_async_context(primary)
        yield connection


async def _reads_replica(database: Database, request: Request | None) -> bool:
    """Whether there is a replica that this request may read from."""
    if request and database.writers and await database.writers.include(request):
        return False
    return database.replica.worth_a_try()


@asynccontextmanager
async def past_pooler(database: Database) -> AsyncIterator["Connection[Any]"]:
    """A connection of its own, outside of any pool: for LISTEN, and what else needs a session."""
    connection = await connect(database.direct_url, timeout=CONNECT_TIMEOUT_SECONDS)
    try:
        yield connection
    finally:
        connection.terminate()


async def _write_session(request: Request) -> AsyncIterator[Writing]:
    async with _one_unit(request) as database, writing(database) as session:
        yield session


async def _orm_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with _one_unit(request) as database, transaction(database) as session:
        yield session


@asynccontextmanager
async def _one_unit(request: Request) -> AsyncIterator[Database]:
    """Who wrote is known once it is committed. What writes in two sessions could be half done."""
    if hasattr(request.state, "writes"):
        raise RuntimeError("A request has a WriteSession or an OrmSession, and not both")
    request.state.writes = True
    database = database_of(request.app)
    yield database
    if database.writers:
        await database.writers.add(request)


async def _read_session(request: Request) -> Reading:
    return reading(database_of(request.app), request)


async def _snapshot(request: Request) -> AsyncIterator[SnapshotReading]:
    database = database_of(request.app)
    async with (
        place_for_stream(database.downloads, request),
        snapshot(database, request) as session,
    ):
        yield session


@asynccontextmanager
async def place_for_stream(places: asyncio.Semaphore, request: Request) -> AsyncIterator[None]:
    """One of these places, so that streams leave connections to everybody else.

    Raises:
        Unavailable: none became free in time.
    """
    seconds = request.app.state.settings.database_pool_timeout
    detail = "Too many uploads or downloads are under way; please try again"
    await take_place(places, seconds, "streams", detail)
    try:
        yield
    finally:
        places.release()


WriteSession = Annotated[Writing, Depends(_write_session, scope="function")]
"""One transaction, committed before the response leaves; rows, not objects."""

OrmSession = Annotated[AsyncSession, Depends(_orm_session, scope="function")]
"""The same of objects, where several change together; handlers flush and never commit."""

ReadSession = Annotated[Reading, Depends(_read_session)]
"""Read-only, and no unit: each statement sees what is newest; rows, not objects."""

Snapshot = Annotated[SnapshotReading, Depends(_snapshot, scope="request")]
"""One read-only snapshot that lives as long as the response: for answers that are streamed. They
may have half of the connections at once."""
