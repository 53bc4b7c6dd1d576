"""A pool of connections for reads."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias
from weakref import WeakSet

import asyncpg
import orjson
import structlog
from asyncpg import InterfaceError, PostgresError, Record

from shared.db.connecting import Connect
from shared.db.errors import (
    CONNECT_ERRORS,
    CONNECTION_LOST,
    CONNECTION_LOST_ERRORS,
    ENDED_BY_SERVER_ERRORS,
    UNREACHABLE,
    Unreachable,
    is_worker_lost,
)
from shared.problems import Unavailable
from shared.slots import Slots

CANCEL_TIMEOUT_SECONDS = 1.0  # for an abandoned statement to end
CLOSE_TIMEOUT_SECONDS = 2.0
MAX_AGE_SECONDS = 300.0  # of a connection, so that a name that has moved is followed


log = structlog.get_logger(__name__)


class Row(Record):
    """A row of a result. Its columns are attributes, except those that asyncpg's own methods hide
    (`get`, `items`, `keys`, `values`); `dict(row)` has all columns."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Connection: TypeAlias = "asyncpg.Connection[Row]"


class ReadPool:
    """A connection pool for reads: opens up to `size` connections, each when first needed.

    asyncpg's own pool spends three times as long around a statement as the statement takes.

    `first_statement` begins each transaction. It is set behind a pooler in transaction
    mode, where no setting outlasts a transaction: each statement then runs in a transaction, and
    prepared statements have no names and are not cached.
    """

    def __init__(
        self,
        connect: Connect,
        size: int,
        wait_seconds: float,
        first_statement: str | None = None,
    ) -> None:
        self.size, self.wait_seconds, self.first_statement = size, wait_seconds, first_statement
        self.in_use = 0
        self._slots = Slots("connections", size)
        self._idle: list[tuple[Connection, float]] = []
        self._generation = 0
        self._open = True
        self._connect = connect
        self.connections: WeakSet[Connection] = WeakSet()

    @asynccontextmanager
    async def connection(self, *, snapshot: bool = False) -> AsyncIterator[Connection]:
        """Lends a connection. With `snapshot`, its statements see one snapshot and may use cursors.

        Raises:
            TooManyRequests: the account or network has held its share of connections for too long.
            Unavailable: no connection becomes free in time, or it is lost.
            Unreachable: no connection can be made.
        """
        holder = await self._slots.acquire(self.wait_seconds)
        try:
            connection, expires_at = await self._idle_or_new()
            self.in_use += 1
            reusable, generation = True, self._generation
            try:
                if snapshot or self.first_statement:
                    async with self._transaction(connection, snapshot=snapshot):
                        yield connection
                else:
                    yield connection
            except CONNECTION_LOST_ERRORS as error:
                if is_worker_lost(error):
                    raise  # the connection is to the coordinator, and is still good
                reusable = False
                ended = isinstance(error, (TimeoutError, *ENDED_BY_SERVER_ERRORS))
                if not (connection.is_closed() or ended):
                    raise
                raise Unavailable(CONNECTION_LOST) from error
            except (asyncio.CancelledError, GeneratorExit):
                reusable = False  # a statement may still run
                raise
            finally:
                self.in_use -= 1
                if reusable and self._open and generation == self._generation:
                    self._idle.append((connection, expires_at))
                else:
                    await _close(connection, CANCEL_TIMEOUT_SECONDS)
        finally:
            self._slots.release(holder)

    async def _idle_or_new(self) -> tuple[Connection, float]:
        """Returns an idle connection that is still open, or a new one, and when it expires.

        A read leaves no state on a connection, so it needs no reset.
        """
        while self._idle:
            connection, expires_at = self._idle.pop()
            if connection.is_closed():
                continue
            if time.monotonic() < expires_at:
                return connection, expires_at
            connection.terminate()
        try:
            connection = await self._connect()
            await _decode_json(connection)
        except CONNECT_ERRORS as error:
            raise Unreachable(UNREACHABLE) from error
        self.connections.add(connection)
        return connection, expiry()

    @asynccontextmanager
    async def _transaction(self, connection: Connection, *, snapshot: bool) -> AsyncIterator[None]:
        isolation: Any = "repeatable_read" if snapshot else None
        async with connection.transaction(isolation=isolation, readonly=True):
            if self.first_statement:
                await connection.execute(self.first_statement)
            try:
                yield
            except TimeoutError:
                connection.terminate()  # as it would not answer a ROLLBACK either
                raise

    def replace_connections(self) -> None:
        """Closes all idle connections now, and those in use when they are returned."""
        self._generation += 1
        while self._idle:
            self._idle.pop()[0].terminate()

    async def close(self) -> None:
        """Closes all idle connections; one in use is closed when it is returned."""
        self._open = False
        await asyncio.gather(*(_close(idle, CLOSE_TIMEOUT_SECONDS) for idle, _ in self._idle))


def expiry() -> float:
    """Returns until when a new connection is used, by the monotonic clock: the connections of a
    pool, made together, are not replaced together."""
    return time.monotonic() + MAX_AGE_SECONDS * random.uniform(0.8, 1.0)  # noqa: S311


async def _decode_json(connection: Connection) -> None:
    """Reads JSON as objects and writes it as text, as SQLAlchemy does on its own connections."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=str, decoder=orjson.loads
        )


async def _close(connection: Connection, seconds: float) -> None:
    """Closes a connection; asyncpg cancels a statement that still runs on it."""
    with suppress(OSError, PostgresError, InterfaceError):  # a TimeoutError is an OSError
        async with asyncio.timeout(seconds):
            await connection.close()
