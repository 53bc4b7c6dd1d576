"""PostgreSQL: an engine for writes, pools for reads, and the timeouts of both.

Behind a pooler in transaction mode no setting outlasts a transaction. There, each transaction
sets its own timeouts.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncpg import Connection, InterfaceError, connect
from fastapi import FastAPI
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.db.pool import CLOSE_TIMEOUT_SECONDS, CONNECT_TIMEOUT_SECONDS, ReadPool, Row
from shared.db.replica import Presence, RecentWriters
from shared.settings import Settings

UNNAMED: Mapping[str, Any] = {
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
STANDSTILL_SECONDS = 300.0  # the longest time a transaction may be idle


@dataclass(frozen=True)
class Database:
    """The engine and the pools of one process.

    `direct_url` is a libpq URL that bypasses any pooler. `begin` is the SQL that begins the
    transaction of a write session. `read` is the replica's pool where one is set; then `writers`
    read from `read_primary`, and so do all clients while the replica is unreachable. `probe` has a
    separate connection, to check whether PostgreSQL answers even when the pools are exhausted.
    `uploads` and `downloads` hold the slots of streams, which last long: half as many as
    a pool has connections, and at least one.
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
        """The read pools by name, each once."""
        primary = {"read_primary": self.read_primary} if self.writers else {}
        return {"read": self.read} | primary

    async def dispose(self) -> None:
        """Closes all connections; does not wait for a server that does not answer."""
        for pool in self.read_pools.values():
            await pool.close()
        for engine in (self.write, self.probe):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                    await engine.dispose()
        if self.writers:
            await self.writers.close()


def open_database(url: str, settings: Settings) -> Database:
    """Creates the engine and the pools. Opens no connection until a session first needs one."""
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
    """Returns the server settings of a connection, and the first statement of each transaction.

    The timeouts are settings of the connection. Behind a pooler, which shares connections between
    clients, each transaction sets them.
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
    """Creates an engine for a libpq URL. asyncpg parses it, as it knows `sslmode` and the like."""

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
    # asyncpg knows that a socket is closed without asking the server: a restart of PostgreSQL
    # fails no request, and a checkout costs no round trip, which `pool_pre_ping` would.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _part_if_stuck(context: ExceptionContext) -> None:
    # PostgreSQL announces its shutdown and then closes the connection. A COPY between the two
    # leaves asyncpg in the middle of an operation for ever, and the rollback fails, not a
    # statement. Mark the connection as lost, so that the pool discards it.
    original: BaseException = context.original_exception
    if context.statement is None and isinstance(original.__cause__, InterfaceError):
        context.is_disconnect = True


def database_of(app: FastAPI) -> Database:
    """Returns the database of a running application."""
    database: Database = app.state.database
    return database


@asynccontextmanager
async def past_pooler(database: Database) -> AsyncIterator["Connection[Any]"]:
    """Opens a connection that bypasses pools and poolers, for LISTEN and other session state."""
    connection = await connect(database.direct_url, timeout=CONNECT_TIMEOUT_SECONDS)
    try:
        yield connection
    finally:
        connection.terminate()
