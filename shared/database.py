"""PostgreSQL: two engines, and the unit of work of a request.

A *write session* is one transaction: it commits once, after the handler has returned and
before the first byte of the response leaves, so that a 2xx means committed. A *read
session* has no transaction at all: every statement sees the newest snapshot, and the
server refuses writes. It goes to the replica where one is set, but for clients who have
just written: they read what they wrote, from the primary.

Behind a pooler in transaction mode nothing outlasts a transaction: there, a read session is
one too, read-only, statements have no names, and each transaction sets its own timeouts.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from asyncpg import Connection, InterfaceError, PostgresError, connect
from fastapi import Depends, FastAPI, Request
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.errors import Unavailable
from shared.replica import Presence, RecentWriters
from shared.settings import Settings

CONNECT_TIMEOUT_SECONDS = 3.0
CLOSE_TIMEOUT_SECONDS = 2.0
# What asyncpg raises while it connects; SQLAlchemy wraps only what comes later. It gives up with
# an InvalidRequestError where a new connection has ended before it could be used.
CONNECT_ERRORS = (OSError, TimeoutError, PostgresError, InterfaceError, InvalidRequestError)
UNNAMED: Mapping[str, Any] = {
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}
"""What SQLAlchemy is told about prepared statements where a pooler cannot keep them."""


@dataclass(frozen=True)
class Database:
    """The engines of one process. `direct_url` is a libpq URL that leads past any pooler.

    `read` is the replica's, where one is set; `writers` then go to `read_primary`, and so does
    everybody while the replica is away. `probe` has a connection of its own, to ask whether
    PostgreSQL answers however busy the others are. `uploads` and `downloads` are the places for
    streams, which take their time: fewer than there are connections to write and to read.
    """

    direct_url: str
    write: AsyncEngine
    read: AsyncEngine
    read_primary: AsyncEngine
    probe: AsyncEngine
    writers: RecentWriters | None
    replica: Presence
    uploads: asyncio.Semaphore
    downloads: asyncio.Semaphore

    @property
    def engines(self) -> Mapping[str, AsyncEngine]:
        """Those of requests, by name, each once."""
        found = {"write": self.write, "read": self.read}
        return found | ({"read_primary": self.read_primary} if self.writers else {})

    async def dispose(self) -> None:
        """Closes all connections; a server that does not answer is not waited for."""
        for engine in (*self.engines.values(), self.probe):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await engine.dispose()
        if self.writers:
            await self.writers.close()


def open_database(url: str, settings: Settings) -> Database:
    """Makes the engines. Connects to nothing: that happens when a session first needs it."""
    replica, lag = settings.database_replica_url, settings.database_replica_lag
    primary = _engine(url, settings, read_only=True)
    half = max(1, settings.database_pool_size // 2)
    return Database(
        direct_url=settings.database_direct_url or url,
        write=_engine(url, settings),
        read=_engine(replica, settings, read_only=True) if replica else primary,
        read_primary=primary,
        probe=_engine(url, settings, size=1),
        writers=RecentWriters(settings.redis_url, lag) if replica else None,
        replica=Presence(),
        uploads=asyncio.Semaphore(half),
        downloads=asyncio.Semaphore(half),
    )


def _engine(
    url: str, settings: Settings, *, read_only: bool = False, size: int | None = None
) -> AsyncEngine:
    bounds = {
        "statement_timeout": _milliseconds(settings.database_statement_timeout),
        "lock_timeout": _milliseconds(settings.database_lock_timeout),
    }
    pooled = settings.database_direct_url is not None
    server = {"application_name": "tessera"} | ({} if pooled else bounds)
    connecting: dict[str, Any] = {"timeout": CONNECT_TIMEOUT_SECONDS, "server_settings": server}
    options: dict[str, Any] = {}
    if pooled:
        connecting["statement_cache_size"] = 0
        options["execution_options"] = {"postgresql_readonly": read_only}
    elif read_only:
        server["default_transaction_read_only"] = "on"
        options["isolation_level"] = "AUTOCOMMIT"
    engine = new_engine(
        url,
        connecting,
        UNNAMED if pooled else {},
        pool_size=size or settings.database_pool_size,
        max_overflow=0,
        hide_parameters=True,  # in error messages, which are logged
        pool_timeout=settings.database_pool_timeout,
        **options,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "handle_error", _part_if_stuck)
    if pooled:
        event.listen(engine.sync_engine, "begin", _bounded_by(bounds))
    return engine


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


def _bounded_by(bounds: Mapping[str, str]) -> Callable[[SyncConnection], None]:
    """For the transactions of a pooler, whose connections have settings that are not ours."""
    each = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in bounds.items())

    def begin(connection: SyncConnection) -> None:
        connection.exec_driver_sql(f"SELECT {each}")

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
    """A write session outside a request: commits at the end, rolls back on any error.

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


@asynccontextmanager
async def reading(
    database: Database, request: Request | None = None
) -> AsyncIterator[AsyncConnection]:
    """A read session, of a request or outside of any.

    Raises:
        Unavailable: when no connection can be made.
    """
    try:
        connection = await _replica(database, request) or await database.read_primary.connect()
    except CONNECT_ERRORS as error:
        raise Unavailable("The database cannot be reached; please try again") from error
    try:
        yield connection
    finally:
        await connection.close()


async def _replica(database: Database, request: Request | None) -> AsyncConnection | None:
    """A connection to the replica, if there is one that this request may read from."""
    if database.writers is None or (request and await database.writers.include(request)):
        return None
    if not database.replica.worth_a_try():
        return None
    try:
        connection = await database.read.connect()
    except (*CONNECT_ERRORS, DBAPIError) as error:
        database.replica.missed(error)
        return None
    database.replica.met()
    return connection


@asynccontextmanager
async def snapshot(
    database: Database, request: Request | None = None
) -> AsyncIterator[AsyncConnection]:
    """A read session whose statements all see one snapshot, and which may have cursors."""
    async with reading(database, request) as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


@asynccontextmanager
async def place_for_stream(places: asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """One of these places, so that streams leave connections to everybody else.

    Raises:
        Unavailable: none became free within so many seconds.
    """
    try:
        async with asyncio.timeout(seconds):
            await places.acquire()
    except TimeoutError:
        busy = "Too many uploads or downloads are under way; please try again"
        raise Unavailable(busy) from None
    try:
        yield
    finally:
        places.release()


@asynccontextmanager
async def listening(database: Database) -> AsyncIterator["Connection[Any]"]:
    """A connection of its own, outside the pool, for LISTEN."""
    connection = await connect(database.direct_url, timeout=CONNECT_TIMEOUT_SECONDS)
    try:
        yield connection
    finally:
        connection.terminate()


async def _write_session(request: Request) -> AsyncIterator[AsyncSession]:
    database = database_of(request.app)
    async with transaction(database) as session:
        yield session
    if database.writers:
        await database.writers.add(request)


async def _read_session(request: Request) -> AsyncIterator[AsyncConnection]:
    async with reading(database_of(request.app), request) as connection:
        yield connection


async def _snapshot(request: Request) -> AsyncIterator[AsyncConnection]:
    database = database_of(request.app)
    place = place_for_stream(database.downloads, request.app.state.settings.database_pool_timeout)
    async with place, snapshot(database, request) as connection:
        yield connection


WriteSession = Annotated[AsyncSession, Depends(_write_session, scope="function")]
"""One transaction, committed before the response leaves; handlers flush and never commit."""

ReadSession = Annotated[AsyncConnection, Depends(_read_session, scope="function")]
"""Read-only, and no unit: each statement sees what is newest; rows, not objects."""

Snapshot = Annotated[AsyncConnection, Depends(_snapshot, scope="request")]
"""One read-only snapshot that lives as long as the response: for answers that are streamed. They
may have half of the connections at once."""
