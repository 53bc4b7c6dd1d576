"""PostgreSQL: an engine for transactions, pools for reads, and the timeouts of both.

Behind a pooler in transaction mode no setting outlasts a transaction. There, each transaction
sets its own timeouts, and each statement of a read session runs in a read-only transaction.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import asyncpg
import structlog
from asyncpg import PostgresError, connect
from fastapi import FastAPI
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import HTTPConnection

from shared.db.changes import Subscriber, Subscribers, Subscription
from shared.db.errors import CONNECT_ERRORS, UNREACHABLE, has_stale_plan
from shared.db.notifications import Notifier
from shared.db.outbox import outbox_subscriber
from shared.db.pool import (
    CLOSE_TIMEOUT_SECONDS,
    CONNECT_TIMEOUT_SECONDS,
    Connection,
    ReadPool,
    Row,
    acquire_slot,
)
from shared.db.replica import ReadYourWrites, Replica
from shared.db.sessions import ReadSession, SnapshotSession, WriteSession, transaction
from shared.problems import Unavailable, overloaded
from shared.settings import Settings
from shared.slots import Slots

UNNAMED_STATEMENTS: Mapping[str, Any] = {
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}
"""SQLAlchemy's options for prepared statements behind a pooler, which cannot keep them."""
KEEPALIVE: Mapping[str, str] = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""Lets the server detect within a minute, not hours, a client that vanished without closing its
connections, and release its locks."""
IDLE_IN_TRANSACTION_SECONDS = 300.0

log = structlog.get_logger(__name__)


class Database:
    """The database of one process. Opens no connection until a session first needs one.

    `direct_url` is a libpq URL that bypasses any pooler. `engine` has the connections of
    transactions, `primary` those of reads, `replica` those to the replica where one is set.
    `probe` has a separate connection, to check whether PostgreSQL answers even when the pools are
    exhausted. `download_slots` and `upload_slots` are half as many as a pool has connections,
    and at least one: streams last long, and leave the other connections to other requests.
    """

    def __init__(
        self, url: str, settings: Settings, subscriptions: Sequence[Subscription] = ()
    ) -> None:
        size, self._wait_seconds = settings.database_pool_size, settings.database_pool_timeout
        self.direct_url = settings.database_direct_url or url
        self.engine = _new_engine(url, settings, size)
        event.listen(self.engine.sync_engine, "checkout", self._refuse_stale)
        self._generation = 0
        self.probe = _new_engine(url, settings, 1)
        self.primary = _read_pool(url, settings)
        self.replica: Replica | None = None
        if settings.database_replica_url:
            writers = ReadYourWrites(settings.redis_url, settings.database_replica_lag)
            pool = _read_pool(settings.database_replica_url, settings)
            self.replica = Replica(pool, self.primary, writers)
        self._write_slots = Slots("connections", size)
        self.download_slots = asyncio.Semaphore(max(1, size // 2))
        self.upload_slots = asyncio.Semaphore(max(1, size // 2))
        self._committing: set[Connection] = set()
        self._subscribers = subscribers_by_topic(subscriptions)
        self._notifier = Notifier(ReadSession(self.primary.connection))
        self._begin = "; ".join(filter(None, ("BEGIN", _timeouts(settings)[1])))

    def read(self, request: HTTPConnection | None = None) -> ReadSession:
        """Returns a read session, for a request or outside one."""
        return ReadSession(partial(self._connection, request))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[WriteSession]:
        """Opens a transaction: commits at the end, rolls back on any error.

        Raises:
            TooManyRequests: the account or network has held its share of connections for too long.
            Unavailable: no connection can be made or becomes free in time, or it is lost.
            PostgresError: the commit fails.
        """
        holder = await self._write_slots.acquire(self._wait_seconds)
        try:
            with self._translate_connect_errors():
                pooled = await self.engine.raw_connection()
            with self._forget_stale_plans():
                async with transaction(
                    self.engine, self._begin, pooled, self._committing, self._subscribers
                ) as session:
                    yield session
        finally:
            self._write_slots.release(holder)
        self._notifier.notify(session.notified)

    @asynccontextmanager
    async def orm_transaction(self) -> AsyncIterator[AsyncSession]:
        """Opens a transaction in the ORM's view; flush, never commit. Raises as `transaction`."""
        async with self.transaction() as session:
            yield session.orm

    async def record_writer(self, request: HTTPConnection) -> None:
        """Lets the client of a request read from the primary for a while (read-your-writes)."""
        if self.replica:
            await self.replica.writers.add(request)

    @asynccontextmanager
    async def snapshot(
        self, request: HTTPConnection | None = None
    ) -> AsyncIterator[SnapshotSession]:
        """Opens a read session whose statements all see one snapshot.

        Raises:
            Unavailable: no connection can be made, or none becomes free in time.
        """
        with self._forget_stale_plans():
            async with self._connection(request, snapshot=True) as connection:
                yield SnapshotSession(connection)

    @asynccontextmanager
    async def direct(self) -> AsyncIterator["asyncpg.Connection[Any]"]:
        """Opens a connection that bypasses pools and poolers, for LISTEN and other session state.

        Raises:
            OSError, TimeoutError, PostgresError, InterfaceError: it cannot be made.
        """
        connection = await connect(self.direct_url, timeout=CONNECT_TIMEOUT_SECONDS)
        try:
            yield connection
        finally:
            connection.terminate()

    @asynccontextmanager
    async def stream_slot(self, slots: asyncio.Semaphore) -> AsyncIterator[None]:
        """Holds one of the slots for a stream.

        Raises:
            Unavailable: no slot becomes free in time.
        """
        detail = "Too many uploads or downloads are under way; please try again"
        await acquire_slot(slots, self._wait_seconds, "streams", detail)
        try:
            yield
        finally:
            slots.release()

    def pool_usage(self) -> dict[str, tuple[int, int]]:
        """Returns the connections in use, and the most that there may be, by the pool's name."""
        engine: Any = self.engine.pool  # a QueuePool
        reads = {name: (pool.in_use, pool.size) for name, pool in self._read_pools.items()}
        return {"write": (engine.checkedout(), engine.size()), **reads}

    @property
    def _read_pools(self) -> Mapping[str, ReadPool]:
        """The read pools by name: where a replica is set, `read` is the replica's."""
        if self.replica is None:
            return {"read": self.primary}
        return {"read": self.replica.pool, "read_primary": self.primary}

    async def dispose(self) -> None:
        """Closes all connections; does not wait for a server that does not answer."""
        await self._notifier.close()
        for connection in self._committing:
            connection.terminate()  # to cancel the COMMIT would change what it means
        for pool in self._read_pools.values():
            await pool.close()
        for engine in (self.engine, self.probe):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await engine.dispose()
        if self.replica:
            await self.replica.writers.close()

    def _connection(
        self, request: HTTPConnection | None, *, snapshot: bool = False
    ) -> AbstractAsyncContextManager[Connection]:
        if self.replica is None:
            return self.primary.connection(snapshot=snapshot)
        return self.replica.connection(request, snapshot=snapshot)

    @contextmanager
    def _forget_stale_plans(self) -> Iterator[None]:
        """Replaces all connections if one has a stale plan, as each would fail once."""
        generation = self._generation
        try:
            yield
        except (PostgresError, DBAPIError) as error:
            if has_stale_plan(error) and generation == self._generation:
                self._generation += 1
                for pool in self._read_pools.values():
                    pool.replace_connections()
            raise

    def _refuse_stale(self, _connection: Any, record: Any, _proxy: Any) -> None:
        if record.info.setdefault("generation", self._generation) != self._generation:
            raise DisconnectionError  # SQLAlchemy connects anew

    @contextmanager
    def _translate_connect_errors(self) -> Iterator[None]:
        """Translates the errors of taking a connection from the engine's pool.

        Raises:
            Unavailable: no connection can be made, or none becomes free in time.
        """
        try:
            yield
        except PoolTimeoutError as error:
            log.warning("pool_exhausted", reason="connections", seconds=self._wait_seconds)
            raise overloaded("connections") from error
        except (*CONNECT_ERRORS, self.engine.dialect.loaded_dbapi.Error) as error:
            raise Unavailable(UNREACHABLE) from error


def subscribers_by_topic(subscriptions: Sequence[Subscription]) -> Subscribers:
    """Returns what runs in the publisher's transaction, by topic; for those that run after the
    commit, that is one write into the outbox."""
    found: dict[str, list[Subscriber]] = {each.topic.name: [] for each in subscriptions}
    for topic, subscribers in found.items():
        own = [each for each in subscriptions if each.topic.name == topic]
        subscribers += [each.run for each in own if each.outbox is None]
        if names := sorted(each.outbox for each in own if each.outbox):
            subscribers.append(outbox_subscriber(names))
    return found


def _read_pool(url: str, settings: Settings) -> ReadPool:
    server, first_statement = _timeouts(settings)
    if first_statement is None:
        server = server | {"default_transaction_read_only": "on"}
    size, seconds = settings.database_pool_size, settings.database_pool_timeout
    return ReadPool(url, size, seconds, server, first_statement)


def _new_engine(url: str, settings: Settings, size: int) -> AsyncEngine:
    server, first_statement = _timeouts(settings)
    connecting: dict[str, Any] = {
        "timeout": CONNECT_TIMEOUT_SECONDS,
        "server_settings": server,
        "record_class": Row,
    }
    pooler = first_statement is not None
    engine = new_engine(
        url,
        connecting | ({"statement_cache_size": 0} if pooler else {}),
        UNNAMED_STATEMENTS if pooler else {},
        pool_size=size,
        max_overflow=0,
        hide_parameters=True,  # in error messages, which are logged
        isolation_level="AUTOCOMMIT",  # shared/db/sessions.py sends BEGIN and COMMIT
        pool_timeout=settings.database_pool_timeout,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def _timeouts(settings: Settings) -> tuple[dict[str, str], str | None]:
    """Returns the server settings of a connection, and the first statement of each transaction.

    The timeouts are settings of the connection. Behind a pooler, which shares connections between
    clients, each transaction sets them.
    """
    server = {"application_name": "tessera"}
    timeouts = {
        "statement_timeout": _milliseconds(settings.database_statement_timeout),
        "lock_timeout": _milliseconds(settings.database_lock_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_SECONDS),
    }
    if settings.database_direct_url is None:
        return {**server, **KEEPALIVE, **timeouts}, None
    each = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in timeouts.items())
    return server, f"SELECT {each}"


def new_engine(
    url: str,
    connecting: Mapping[str, Any],
    statements: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncEngine:
    """Creates an engine for a libpq URL. asyncpg parses it, as it knows `sslmode` and the like."""

    def connection() -> Any:
        dbapi: Any = engine.sync_engine.dialect.dbapi
        creator = partial(connect, url, **connecting)
        return dbapi.connect(async_creator_fn=creator, **(statements or {}))

    shown = make_url(url).set(drivername="postgresql+asyncpg", query={})
    engine = create_async_engine(shown, creator=connection, **options)
    return engine


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _refuse_closed(connection: Any, record: Any, proxy: Any) -> None:
    # asyncpg knows that a socket is closed without asking the server: a restart of PostgreSQL
    # fails no request, and a checkout costs no round trip, which `pool_pre_ping` would.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def database_of(app: FastAPI) -> Database:
    """Returns the database of a running application."""
    database: Database = app.state.database
    return database
