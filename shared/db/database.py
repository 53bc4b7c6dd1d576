"""PostgreSQL: an engine for transactions, pools for reads, and the settings of both.

Behind a pooler in transaction mode no setting outlasts a transaction. There, each transaction
sets its own settings, and each statement of a read session runs in a read-only transaction.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from itertools import chain, repeat
from typing import Any
from weakref import WeakSet

import asyncpg
import structlog
from asyncpg import PostgresError
from fastapi import FastAPI
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import HTTPConnection

from shared.db.changes import Subscribers
from shared.db.connecting import Connect, NoHostInRole, ServerRole, connector, server_of
from shared.db.errors import (
    CONNECT_ERRORS,
    READ_ONLY,
    UNREACHABLE,
    DatabaseError,
    has_stale_plan,
    is_read_only,
)
from shared.db.notifications import Notifier
from shared.db.pool import (
    CLOSE_TIMEOUT_SECONDS,
    Connection,
    ReadPool,
    Row,
    expiry,
)
from shared.db.replica import ReadYourWrites, Replica, ReplicaReadSession
from shared.db.sessions import (
    SILENCE_SECONDS,
    ReadSession,
    SnapshotSession,
    WriteSession,
    milliseconds,
    notice_unconfirmed,
    transaction,
)
from shared.problems import Unavailable, overloaded
from shared.settings import Settings
from shared.slots import MAX_STREAMS, Slots, StreamSlots

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
STREAM_WAIT_SECONDS = 300.0  # that a stream which has begun waits for its next connection
NO_SUBSCRIBERS: Subscribers = {}
IS_READ_ONLY = text("SELECT current_setting('transaction_read_only')::boolean")  # true in recovery

log = structlog.get_logger(__name__)


class Database:
    """The database of one process. Opens no connection until a session first needs one.

    `engine` has the connections of transactions, `primary` those of reads, `replica` those to the
    replica where one is set. Streams, which hold a snapshot or a transaction for long, take at
    most half of the connections; `download_slots` and `upload_slots` bound their number.
    """

    def __init__(
        self, url: str, settings: Settings, subscribers: Subscribers = NO_SUBSCRIBERS
    ) -> None:
        size, self._wait_seconds = settings.database_pool_size, settings.database_pool_timeout
        self._connect_directly = connector(settings.database_direct_url or url, ServerRole.PRIMARY)
        self._generation, self._read_only = 0, False
        self._direct: set[asyncpg.Connection[Any]] = set()
        self.engine, self._probe_engine = (_write_engine(url, settings, n) for n in (size, 1))
        for engine in (self.engine, self._probe_engine):
            event.listen(engine.sync_engine, "connect", self._on_connect)
            event.listen(engine.sync_engine, "checkout", self._on_checkout)
        self.primary, self._probe_pool = (
            _read_pool(url, ServerRole.PRIMARY, settings, n) for n in (size, 1)
        )
        self.replica: Replica | None = None
        if settings.database_replica_url:
            writers = ReadYourWrites(settings.redis_url, settings.database_replica_lag)
            pool, probe = (
                _read_pool(settings.database_replica_url, ServerRole.STANDBY, settings, n)
                for n in (size, 1)
            )
            self.replica = Replica(pool, probe, self.primary, writers)
        self._snapshot_seconds = settings.database_snapshot_timeout
        self._write_slots = Slots("connections", size)
        half, wait = max(1, size // 2), self._wait_seconds
        self._long_slots = StreamSlots(half, STREAM_WAIT_SECONDS)
        self._snapshot_slots = StreamSlots(half, wait)
        self.upload_slots, self.download_slots = (StreamSlots(MAX_STREAMS, wait) for _ in range(2))
        self._committing: set[Connection] = set()
        self._writing: WeakSet[Connection] = WeakSet()
        self._server: object = None
        self._subscribers = subscribers
        self._longest_wait = _longest_wait(settings)
        self._notifier = Notifier(ReadSession(self.primary.connection, self._longest_wait))
        self._begin = "; ".join(filter(None, ("BEGIN", _first_statement(settings))))

    def read(self, request: HTTPConnection | None = None) -> ReadSession:
        """Returns a read session, for a request, which has a deadline, or outside one."""
        has_deadline = request is not None and request.scope["type"] == "http"
        timeout = None if has_deadline else self._longest_wait
        if self.replica is None:
            return ReadSession(self.primary.connection, timeout)
        return ReplicaReadSession(self.replica, request, timeout)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[WriteSession]:
        """Opens a transaction: commits at the end, rolls back on any error.

        Raises:
            TooManyRequests: the account or network has held its share of connections for too long.
            Unavailable: no connection can be made or becomes free in time, it is lost, or the
                server is read-only.
            PostgresError: the commit fails.
        """
        holder = await self._write_slots.acquire(self._wait_seconds)
        try:
            with self._translate_connect_errors():
                pooled = await self.engine.raw_connection()
            with self._replace_connections_if(has_stale_plan, is_read_only):
                async with transaction(
                    self.engine, self._begin, pooled, self._committing, self._subscribers
                ) as session:
                    yield session
        finally:
            self._write_slots.release(holder)
        self._notifier.notify(session.notified)

    @asynccontextmanager
    async def long_transaction(self) -> AsyncIterator[WriteSession]:
        """Opens a transaction that may take minutes, such as the last one of an upload, for which
        it waits as long.

        At most half of the connections to write are in one. Raises as `transaction`.
        """
        async with self._long_slots.hold(), self.transaction() as session:
            yield session

    @asynccontextmanager
    async def orm_transaction(self) -> AsyncIterator[AsyncSession]:
        """Opens a transaction in the ORM's view; flush, never commit. Raises as `transaction`."""
        async with self.transaction() as session:
            yield session.orm

    @asynccontextmanager
    async def snapshot(
        self, request: HTTPConnection | None = None
    ) -> AsyncIterator[SnapshotSession]:
        """Opens a read session whose statements all see one snapshot.

        Raises:
            TooManyRequests: the account or network has held its share of snapshots for too long.
            Unavailable: no connection can be made, or none becomes free in time.
        """
        waits = chain((None,), repeat(STREAM_WAIT_SECONDS))

        @asynccontextmanager
        async def connect() -> AsyncIterator[Connection]:
            async with (
                self._snapshot_slots.hold(next(waits)),
                self._connection(request, snapshot=True) as connection,
            ):
                yield connection

        with self._replace_connections_if(has_stale_plan):
            async with SnapshotSession(
                connect, self._snapshot_seconds, self._longest_wait
            ) as session:
                yield session

    @asynccontextmanager
    async def direct(self) -> AsyncIterator["asyncpg.Connection[Any]"]:
        """Opens a connection that bypasses pools and poolers, for LISTEN and other session state.
        It is closed when writes move to another server.

        Raises:
            OSError, TimeoutError, PostgresError, InterfaceError: it cannot be made.
        """
        connection = await self._connect_directly()
        self._direct.add(connection)
        try:
            yield connection
        finally:
            self._direct.discard(connection)
            connection.terminate()

    @asynccontextmanager
    async def probe(self) -> AsyncIterator[AsyncConnection]:
        """Opens a connection that may write, if reads are served too. Both are separate from the
        pools, so that it shows whether PostgreSQL serves even when these are exhausted.

        Replaces all connections to a server that has become read-only: reads would not notice.

        Raises:
            Unavailable: the server is read-only.
            CONNECT_ERRORS, SQLAlchemyError: it does not answer.
        """
        async with self._probe_pool.connection() as reading:
            await reading.execute("SELECT 1")
        async with self._probe_engine.connect() as connection:
            if await connection.scalar(IS_READ_ONLY):
                self._replace_connections()
                self._record_read_only()
                raise Unavailable(READ_ONLY)
            yield connection

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
            connection.terminate()  # to cancel the COMMIT would change its meaning
        for pool in (*self._read_pools.values(), self._probe_pool):
            await pool.close()
        for engine in (self.engine, self._probe_engine):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await engine.dispose()
        if self.replica:
            await self.replica.close()

    def _connection(
        self, request: HTTPConnection | None, *, snapshot: bool = False
    ) -> AbstractAsyncContextManager[Connection]:
        if self.replica is None:
            return self.primary.connection(snapshot=snapshot)
        return self.replica.connection(request, snapshot=snapshot)

    @contextmanager
    def _replace_connections_if(self, *useless: Callable[[DatabaseError], bool]) -> Iterator[None]:
        """Replaces all connections if an error shows that one is useless, as each would fail once.

        Raises:
            Unavailable: the server is read-only.
        """
        generation = self._generation
        try:
            yield
        except (PostgresError, DBAPIError) as error:
            found = [each for each in useless if each(error)]
            if found and generation == self._generation:
                self._replace_connections()
            if is_read_only in found:
                self._record_read_only()
                raise Unavailable(READ_ONLY) from error
            raise

    def _replace_connections(self) -> None:
        self._generation += 1
        for pool in (*self._read_pools.values(), self._probe_pool):
            pool.replace_connections()

    def _record_read_only(self) -> None:
        if not self._read_only:
            log.warning("database_read_only")
        self._read_only = True

    def _on_connect(self, connection: Any, record: Any) -> None:
        """Records when a connection was made. If writes have moved to another server, moves reads
        there too, as the former server may still answer them."""
        made = connection.driver_connection
        notice_unconfirmed(made)
        server, former = server_of(made), self._server
        self._server = server
        if self._read_only or former not in {None, server}:
            self._read_only = False
            log.info("database_takes_changes")
            self._replace_connections()
            self._end_waits(server)
        self._writing.add(made)
        record.info["made"] = (self._generation, expiry())

    def _end_waits(self, server: object) -> None:
        """Closes the connections to other servers, where requests may wait in vain, and those that
        LISTEN."""
        for connection in self._direct:
            connection.terminate()
        pools = (self._writing, self.primary.connections, self._probe_pool.connections)
        for connection in chain.from_iterable(pools):
            if server_of(connection) != server:
                connection.terminate()

    def _on_checkout(self, connection: Any, record: Any, _proxy: Any) -> None:
        """Has SQLAlchemy replace a connection that is stale, or closed.

        asyncpg knows that a socket is closed without asking the server: a restart of PostgreSQL
        fails no request, and a checkout costs no round trip, which `pool_pre_ping` would.
        """
        generation, expires_at = record.info["made"]
        is_stale = generation != self._generation or time.monotonic() > expires_at
        if is_stale or connection.driver_connection.is_closed():
            raise DisconnectionError

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
        except NoHostInRole as error:
            self._record_read_only()
            raise Unavailable(READ_ONLY) from error
        except (*CONNECT_ERRORS, self.engine.dialect.loaded_dbapi.Error) as error:
            raise Unavailable(UNREACHABLE) from error


def _read_pool(url: str, role: ServerRole, settings: Settings, size: int) -> ReadPool:
    first_statement = _first_statement(settings)
    # Behind a pooler each read is a transaction, whose BEGIN waits for an answer too.
    wait = _longest_wait(settings) if first_statement else None
    connect = _connector(url, role, settings, wait, default_transaction_read_only="on")
    return ReadPool(connect, size, settings.database_pool_timeout, first_statement)


def _write_engine(url: str, settings: Settings, size: int) -> AsyncEngine:
    connect = _connector(url, ServerRole.READ_WRITE, settings, _longest_wait(settings))
    return new_engine(
        connect,
        UNNAMED_STATEMENTS if settings.database_direct_url else {},
        pool_size=size,
        max_overflow=0,
        hide_parameters=True,  # in error messages, which are logged
        isolation_level="AUTOCOMMIT",  # shared/db/sessions.py sends BEGIN and COMMIT
        pool_timeout=settings.database_pool_timeout,
    )


def _connector(
    url: str,
    role: ServerRole,
    settings: Settings,
    command_timeout: float | None = None,
    **server: str,
) -> Connect:
    """Returns a function that connects with these settings of the server. A pooler takes none, as
    it shares connections between clients, and it chooses a server for each transaction."""
    named = {"application_name": "tessera"}
    options: dict[str, Any] = {"command_timeout": command_timeout, "record_class": Row}
    if settings.database_direct_url:
        return connector(url, None, server_settings=named, statement_cache_size=0, **options)
    server = {**named, **KEEPALIVE, **_settings_of_transactions(settings), **server}
    return connector(url, role, server_settings=server, **options)


def _settings_of_transactions(settings: Settings) -> dict[str, str]:
    """Returns the timeouts, and no JIT: a statement of milliseconds on a large table would be
    compiled for a tenth of a second each time."""
    timeouts = {
        "statement_timeout": settings.database_statement_timeout,
        "lock_timeout": settings.database_lock_timeout,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_SECONDS,
    }
    return {name: milliseconds(each) for name, each in timeouts.items()} | {"jit": "off"}


def _first_statement(settings: Settings) -> str | None:
    """Returns the statement that begins each transaction with its settings, if a pooler is used."""
    if settings.database_direct_url is None:
        return None
    values = _settings_of_transactions(settings).items()
    return "SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in values)


def _longest_wait(settings: Settings) -> float:
    """Returns the seconds after which a statement without an answer fails: a server that lives
    would have cancelled it by then."""
    return settings.database_statement_timeout + SILENCE_SECONDS


def new_engine(
    connect: Connect, statements: Mapping[str, Any] | None = None, **options: Any
) -> AsyncEngine:
    """Creates an engine whose connections asyncpg makes, as it knows libpq's URLs."""

    def connection() -> Any:
        dbapi: Any = engine.sync_engine.dialect.dbapi
        return dbapi.connect(async_creator_fn=connect, **(statements or {}))

    engine = create_async_engine("postgresql+asyncpg://", creator=connection, **options)
    return engine


def database_of(app: FastAPI) -> Database:
    """Returns the database of a running application."""
    database: Database = app.state.database
    return database
