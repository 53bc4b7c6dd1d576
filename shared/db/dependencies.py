"""The database sessions of a request: transactions to write, autocommit to read.

A *write session* is one transaction. It commits once, after the handler has returned and before
the first byte of the response is sent, so a 2xx means committed. An *ORM session* is such a
transaction with SQLAlchemy's identity map, which costs as much as a few statements. A request
uses one or the other; both take connections from the same pool. A *read session* is in
autocommit mode: each statement sees the newest snapshot, and the server refuses writes. It reads
from the replica where one is set, except for clients that have just written: they read from the
primary (read-your-writes).

Behind a pooler in transaction mode no setting outlasts a transaction. There, each statement of a
read session runs in a read-only transaction.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from typing import Annotated, Any

import structlog
from asyncpg import PostgresError
from fastapi import Depends, Request
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.db.database import Database, database_of
from shared.db.errors import CONNECT_ERRORS, UNREACHABLE, Unreachable
from shared.db.pool import Connection, take_place
from shared.db.sessions import Reading, SnapshotReading, Writing, unit_of_work
from shared.problems import Unavailable, busy

log = structlog.get_logger(__name__)


@asynccontextmanager
async def orm_session(database: Database) -> AsyncIterator[AsyncSession]:
    """Opens an ORM session outside a request: commits at the end, rolls back on any error.

    Raises:
        Unavailable: no connection can be made, or none becomes free in time.
    """
    async with AsyncSession(database.write, expire_on_commit=False) as session:
        with _told_if_none(database):
            await session.connection()
        yield session
        await session.commit()


async def statements(session: AsyncSession) -> Writing:
    """Flushes an ORM session, and returns a write session in the same transaction."""
    await session.flush()
    connection = await session.connection()
    await connection.exec_driver_sql("SELECT 1")  # SQLAlchemy sends BEGIN with its first statement
    driver: Any = (await connection.get_raw_connection()).driver_connection
    return Writing(driver)


@asynccontextmanager
async def writing(database: Database) -> AsyncIterator[Writing]:
    """Opens a write session outside a request: commits at the end, rolls back on any error.

    Raises:
        Unavailable: no connection can be made or becomes free in time, or it is lost.
        PostgresError: the commit fails.
    """
    with _told_if_none(database):
        connection = await database.write.raw_connection()
    try:
        driver: Any = connection.driver_connection
        async with unit_of_work(driver, database.begin) as session:
            yield session
    finally:
        connection.close()


@contextmanager
def _told_if_none(database: Database) -> Iterator[None]:
    """Translates the errors of taking a connection from the pool.

    Raises:
        Unavailable: no connection can be made, or none becomes free in time.
    """
    try:
        yield
    except PoolTimeoutError as error:
        log.warning("no_place_left", seconds=database.write.pool.timeout())  # type: ignore[attr-defined]
        raise busy("connections") from error
    except (*CONNECT_ERRORS, database.write.dialect.loaded_dbapi.Error) as error:
        raise Unavailable(UNREACHABLE) from error


def reading(database: Database, request: Request | None = None) -> Reading:
    """Returns a read session, for a request or outside one."""
    return Reading(partial(_connection, database, request))


@asynccontextmanager
async def snapshot(
    database: Database, request: Request | None = None
) -> AsyncIterator[SnapshotReading]:
    """Opens a read session whose statements all see one snapshot, and whose rows can be streamed.

    Raises:
        Unavailable: no connection can be made, or none becomes free in time.
    """
    async with _connection(database, request, snapshot=True) as connection:
        yield SnapshotReading(connection)


def _connection(
    database: Database, request: Request | None, *, snapshot: bool = False
) -> AbstractAsyncContextManager[Connection]:
    if database.writers is None:
        return database.read_primary.connection(snapshot=snapshot)
    return _connection_to_either(database, request, snapshot=snapshot)


@asynccontextmanager
async def _connection_to_either(
    database: Database, request: Request | None, *, snapshot: bool
) -> AsyncIterator[Connection]:
    """Connects to the replica, or to the primary.

    It uses the primary if the client has just written, or if the replica cannot be reached.
    """
    async with AsyncExitStack() as stack:
        connection: Connection | None = None
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
    """Returns whether to try the replica: no recent write of the client, no recent failure."""
    if request and database.writers and await database.writers.include(request):
        return False
    return database.replica.worth_a_try()


async def _write_session(request: Request) -> AsyncIterator[Writing]:
    async with _one_unit(request) as database, writing(database) as session:
        yield session


async def _orm_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with _one_unit(request) as database, orm_session(database) as session:
        yield session


@asynccontextmanager
async def _one_unit(request: Request) -> AsyncIterator[Database]:
    """Allows one transaction a request, and records the client as a writer after the commit.

    With two transactions, one could commit and the other fail.
    """
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
    """Holds a slot for a stream, so that streams leave connections for other requests.

    Raises:
        Unavailable: no slot becomes free in time.
    """
    seconds = request.app.state.settings.database_pool_timeout
    detail = "Too many uploads or downloads are under way; please try again"
    await take_place(places, seconds, "streams", detail)
    try:
        yield
    finally:
        places.release()


WriteSession = Annotated[Writing, Depends(_write_session, scope="function")]
"""One transaction, committed before the response is sent; returns rows, not objects."""

OrmSession = Annotated[AsyncSession, Depends(_orm_session, scope="function")]
"""One transaction with ORM objects, to change several together; handlers flush, never commit."""

ReadSession = Annotated[Reading, Depends(_read_session)]
"""Read-only, in autocommit mode: each statement sees the newest snapshot; returns rows."""

Snapshot = Annotated[SnapshotReading, Depends(_snapshot, scope="request")]
"""One read-only snapshot that lives as long as the response, for streamed responses. These use at
most half of the connections at once."""
