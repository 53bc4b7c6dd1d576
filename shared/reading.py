"""Read sessions: SQLAlchemy Core statements, sent by asyncpg directly, which return rows.

A read uses autocommit and no identity map. SQLAlchemy's own connection spends more time around a
statement than the statement takes (`python -m tests.benchmarks.layers`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import lru_cache, partial
from typing import Any, TypeAlias

import asyncpg
import orjson
import structlog
from asyncpg import InterfaceError, InternalClientError, PostgresError, Record
from sqlalchemy import Executable, Insert, Update
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql.compiler import SQLCompiler

from shared.errors import BUSY, LOST, UNREACHABLE, Unavailable, busy

CONNECT_TIMEOUT_SECONDS = 3.0
PART_TIMEOUT_SECONDS = 1.0  # for an abandoned statement to end
CLOSE_TIMEOUT_SECONDS = 2.0
CONNECT_ERRORS = (OSError, TimeoutError, PostgresError, InterfaceError)
"""The exceptions that asyncpg raises while it connects."""
LOSSES = (OSError, InterfaceError, InternalClientError)
"""The exceptions that asyncpg raises where a connection is lost, or is used wrongly."""

STATEMENTS = 1_000  # compiled statements in the cache
DIALECT = dialect()  # type: ignore[no-untyped-call]
NOTHING: Mapping[str, Any] = {}

log = structlog.get_logger(__name__)


class Unreachable(Unavailable):
    """No connection to the database can be made."""


class Row(Record):
    """A row of a result. Its columns are attributes, except those that asyncpg's own methods hide
    (`get`, `items`, `keys`, `values`); `dict(row)` has all columns."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Connection: TypeAlias = "asyncpg.Connection[Row]"
Connections: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]


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


class Reading:
    """A read session in autocommit mode: each statement sees the newest snapshot.

    It holds a connection only while a statement runs, so it can stay open during other waits.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def fetch(self, statement: Executable, values: Mapping[str, Any] = NOTHING) -> list[Row]:
        """Returns all rows of a statement; `values` may have more than its parameters.

        Raises:
            Unavailable: no connection can be made or becomes free in time, or it is lost.
            PostgresError: the statement fails.
        """
        sql, arguments = compiled(statement, values)
        async with self._connections() as connection:
            return await connection.fetch(sql, *arguments)

    async def fetch_one(
        self, statement: Executable, values: Mapping[str, Any] = NOTHING
    ) -> Row | None:
        """Returns the first row of a statement, or None; raises as `fetch` does."""
        rows = await self.fetch(statement, values)
        return rows[0] if rows else None


class SnapshotReading:
    """A read session whose statements all see one snapshot."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def batches(
        self, statement: Executable, values: Mapping[str, Any], size: int
    ) -> AsyncIterator[Sequence[Row]]:
        """Yields the rows of a statement from a cursor, up to `size` at a time.

        Raises:
            PostgresError: the statement fails.
        """
        sql, arguments = compiled(statement, values)
        cursor = await self._connection.cursor(sql, *arguments)
        while batch := await cursor.fetch(size):
            yield batch


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


def compiled(statement: Executable, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Returns the SQL of a statement, and its arguments in order.

    An INSERT or UPDATE sets the columns that are named in `values`.

    Raises:
        InvalidRequestError: a parameter has no value.
        ArgumentError: the statement has `in_` with a list, which only SQLAlchemy itself can send.
    """
    columns = tuple(values) if isinstance(statement, Insert | Update) else None
    compiler, defaults, processors = _compiler(statement, columns)
    parameters = compiler.construct_params(values)
    for name, default in defaults.items():
        parameters[name] = default.arg if default.is_scalar else default.arg(None)
    for name, process in processors.items():
        parameters[name] = process(parameters[name])
    return compiler.string, [parameters[name] for name in compiler.positiontup or ()]


Processor = Callable[[Any], Any]


@lru_cache(STATEMENTS)
def _compiler(
    statement: Executable, columns: tuple[str, ...] | None
) -> tuple[SQLCompiler, Mapping[str, Any], Mapping[str, Processor]]:
    """Compiles a statement, and collects the steps that SQLAlchemy adds when it sends one: column
    defaults that are computed in Python, and the conversion of values by their types."""
    compiler = statement.compile(dialect=DIALECT, column_keys=columns)  # type: ignore[attr-defined]
    assert isinstance(compiler, SQLCompiler)
    if compiler.post_compile_params:
        raise ArgumentError("Instead of in_(), compare with any_() of an array")
    defaults = {column.key: column.default for column in compiler.insert_prefetch}
    defaults |= {column.key: column.onupdate for column in compiler.update_prefetch}
    types = {name: bound.type.dialect_impl(DIALECT) for name, bound in compiler.binds.items()}
    processors = {name: type_.bind_processor(DIALECT) for name, type_ in types.items()}
    return compiler, defaults, {name: process for name, process in processors.items() if process}


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
