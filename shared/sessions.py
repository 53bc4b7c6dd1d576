"""The unit of work of a request, and what only reads.

A *write session* is one transaction: it commits once, after the handler has returned and
before the first byte of the response leaves, so that a 2xx means committed. So is an *ORM
session*, whose objects SQLAlchemy keeps track of, at the price of a few statements; a request
has one or the other, on connections of the same pool. A *read session* has no transaction at
all: every statement sees the newest snapshot, and the server refuses writes. It goes to the
replica where one is set, but for clients who have just written: they read what they wrote,
from the primary.

Behind a pooler in transaction mode nothing outlasts a transaction: there, each statement of a
read session is one too, read-only.
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

from shared.database import CONNECT_ERRORS, Database, database_of
from shared.errors import UNREACHABLE, Unavailable, busy
from shared.reading import Connection, Reading, SnapshotReading, Unreachable, take_place
from shared.writing import Writing, unit_of_work

log = structlog.get_logger(__name__)


@asynccontextmanager
async def orm_session(database: Database) -> AsyncIterator[AsyncSession]:
    """An ORM session outside a request: commits at the end, rolls back on any error.

    Raises:
        Unavailable: there is no connection.
    """
    async with AsyncSession(database.write, expire_on_commit=False) as session:
        with _told_if_none(database):
            await session.connection()
        yield session
        await session.commit()


async def statements(session: AsyncSession) -> Writing:
    """A write session in the transaction of an ORM session, whose objects are flushed."""
    await session.flush()
    connection = await session.connection()
    await connection.exec_driver_sql("SELECT 1")  # with its first statement SQLAlchemy sends BEGIN
    driver: Any = (await connection.get_raw_connection()).driver_connection
    return Writing(driver)


@asynccontextmanager
async def writing(database: Database) -> AsyncIterator[Writing]:
    """A write session outside a request: commits at the end, rolls back on any error.

    Raises:
        Unavailable: there is no connection, or it was lost.
        PostgresError: it cannot be committed.
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
    """
    Raises:
        Unavailable: there is no connection, nor was one free in time.
    """
    try:
        yield
    except PoolTimeoutError as error:
        log.warning("no_place_left", seconds=database.write.pool.timeout())  # type: ignore[attr-defined]
        raise busy("connections") from error
    except (*CONNECT_ERRORS, database.write.dialect.loaded_dbapi.Error) as error:
        raise Unavailable(UNREACHABLE) from error


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
) -> AbstractAsyncContextManager[Connection]:
    if database.writers is None:
        return database.read_primary.connection(snapshot=snapshot)
    return _connection_to_either(database, request, snapshot=snapshot)


@asynccontextmanager
async def _connection_to_either(
    database: Database, request: Request | None, *, snapshot: bool
) -> AsyncIterator[Connection]:
    """To the replica, if this request may read from it and it is there; else to the primary."""
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
    """Whether there is a replica that this request may read from."""
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
