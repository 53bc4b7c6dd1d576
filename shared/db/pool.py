"""Connection pools for reads, and the rows that statements return."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

import asyncpg
import orjson
import structlog
from asyncpg import InterfaceError, PostgresError, Record

from shared.db.errors import CONNECT_ERRORS, LOSSES, LOST, UNREACHABLE, Unreachable
from shared.problems import BUSY, Unavailable, busy

CONNECT_TIMEOUT_SECONDS = 3.0

PART_TIMEOUT_SECONDS = 1.0  # for an abandoned statement to end

CLOSE_TIMEOUT_SECONDS = 2.0

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

    `bounds` is the first statement of each transaction. It is set behind a pooler in transaction
    mode, where no setting outlasts a transaction: each statement then runs in a transaction, and
    prepared statements have no names and are not cached.
    """

    def __init__(
        self,
        url: str,
        size: int,
        wait_seconds: float,
        server_settings: Mapping[str, str],
        bounds: str | None = None,
    ) -> None:
        self.size, self.wait_seconds, self.bounds = size, wait_seconds, bounds
        self.in_use = 0
        self._places = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._open = True
        pooled: dict[str, Any] = {"statement_cache_size": 0} if bounds else {}
        self._connect = partial(
            asyncpg.connect,
            url,
            record_class=Row,
            timeout=CONNECT_TIMEOUT_SECONDS,
            server_settings=dict(server_settings),
            **pooled,
        )

    @asynccontextmanager
    async def connection(self, *, snapshot: bool = False) -> AsyncIterator[Connection]:
        """Lends a connection. With `snapshot`, its statements see one snapshot and may use cursors.

        Raises:
            Unavailable: no connection becomes free in time, or it is lost.
            Unreachable: no connection can be made.
        """
        await take_place(self._places, self.wait_seconds, "connections")
        try:
            connection = await self._idle_or_new()
            self.in_use += 1
            keep = True
            try:
                if snapshot or self.bounds:
                    async with self._transaction(connection, snapshot=snapshot):
                        yield connection
                else:
                    yield connection
            except LOSSES as error:
                keep = False
                if not connection.is_closed():
                    raise
                raise Unavailable(LOST) from error
            except (asyncio.CancelledError, GeneratorExit):
                keep = False  # a statement may still run
                raise
            finally:
                self.in_use -= 1
                if keep and self._open:
                    self._idle.append(connection)
                else:
                    await _part(connection, PART_TIMEOUT_SECONDS)
        finally:
            self._places.release()

    async def _idle_or_new(self) -> Connection:
        """Returns an idle connection that is still open, or a new one.

        A read leaves no state on a connection, so it needs no reset.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        try:
            connection = await self._connect()
            await _decode_json(connection)
        except CONNECT_ERRORS as error:
            raise Unreachable(UNREACHABLE) from error
        return connection

    @asynccontextmanager
    async def _transaction(self, connection: Connection, *, snapshot: bool) -> AsyncIterator[None]:
        isolation: Any = "repeatable_read" if snapshot else None
        async with connection.transaction(isolation=isolation, readonly=True):
            if self.bounds:
                await connection.execute(self.bounds)
            yield

    async def close(self) -> None:
        """Closes all idle connections; one in use is closed when it is returned."""
        self._open = False
        await asyncio.gather(*(_part(idle, CLOSE_TIMEOUT_SECONDS) for idle in self._idle))


async def take_place(
    places: asyncio.Semaphore, seconds: float, reason: str, detail: str = BUSY
) -> None:
    """Acquires a slot of the semaphore.

    Raises:
        Unavailable: no slot becomes free within `seconds`.
    """
    if not places.locked():
        await places.acquire()
        return
    try:
        async with asyncio.timeout(seconds):
            await places.acquire()
    except TimeoutError:
        log.warning("no_place_left", seconds=seconds)
        raise busy(reason, detail) from None


async def _decode_json(connection: Connection) -> None:
    """Reads JSON as objects and writes it as text, as SQLAlchemy does on its own connections."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=str, decoder=orjson.loads
        )


async def _part(connection: Connection, seconds: float) -> None:
    """Closes a connection; asyncpg cancels a statement that still runs on it."""
    with suppress(OSError, PostgresError, InterfaceError):  # a TimeoutError is an OSError
        async with asyncio.timeout(seconds):
            await connection.close()
