"""Reading: statements of SQLAlchemy Core, sent by asyncpg itself, and the rows that come back.

A read is no unit of work and makes no objects: what SQLAlchemy's own connection does around a
statement takes longer than the statement (`python -m tests.benchmarks.layers`).
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
PART_TIMEOUT_SECONDS = 1.0  # for a statement that was given up to end
CLOSE_TIMEOUT_SECONDS = 2.0
CONNECT_ERRORS = (OSError, TimeoutError, PostgresError, InterfaceError)
"""What asyncpg raises while it connects."""
LOSSES = (OSError, InterfaceError, InternalClientError)
"""What asyncpg raises where a connection is lost, or is not used as it should be."""

STATEMENTS = 1_000  # that are kept compiled
DIALECT = dialect()  # type: ignore[no-untyped-call]
NOTHING: Mapping[str, Any] = {}

log = structlog.get_logger(__name__)


class Unreachable(Unavailable):
    """No connection to the database can be made."""


class Row(Record):
    """A row of a result: its columns are attributes, but for those that asyncpg's own methods hide
    (`get`, `items`, `keys`, `values`); `dict(row)` has all."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


Connection: TypeAlias = "asyncpg.Connection[Row]"
Connections: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]


class ReadPool:
    """Connections to read by, each made when it is first needed; `size` at most. What
    asyncpg's own pool does around a statement takes three times as long as the statement.

    `bounds` is a statement, with which each transaction begins: behind a pooler in transaction
    mode, where nothing outlasts one, statements are in one and have no names.
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
        """A connection; all statements of a `snapshot` see one state, and may have cursors.

        Raises:
            Unavailable: none became free in time, or it was lost.
            Unreachable: none can be made.
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
        """One that PostgreSQL has not closed; there is nothing in it that a read has left."""
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
        """Closes all connections; one that is still at work closes once it is not."""
        self._open = False
        await asyncio.gather(*(_part(idle, CLOSE_TIMEOUT_SECONDS) for idle in self._idle))


class Reading:
    """A read session: no unit, but statements that each see what is newest. None of them holds
    a connection longer than it runs, so a session may be kept while something else is waited for.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def fetch(self, statement: Executable, values: Mapping[str, Any] = NOTHING) -> list[Row]:
        """All rows of a statement; `values` may have more than its parameters.

        Raises:
            Unavailable: there is no connection, or it was lost.
            PostgresError: the statement failed.
        """
        sql, arguments = compiled(statement, values)
        async with self._connections() as connection:
            return await connection.fetch(sql, *arguments)

    async def fetch_one(
        self, statement: Executable, values: Mapping[str, Any] = NOTHING
    ) -> Row | None:
        """The first row of a statement, if there is any; raises as `fetch` does."""
        rows = await self.fetch(statement, values)
        return rows[0] if rows else None


class SnapshotReading:
    """A read session whose statements all see one snapshot."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def batches(
        self, statement: Executable, values: Mapping[str, Any], size: int
    ) -> AsyncIterator[Sequence[Row]]:
        """The rows of a statement as they are read, up to `size` at once.

        Raises:
            PostgresError: the statement failed.
        """
        sql, arguments = compiled(statement, values)
        cursor = await self._connection.cursor(sql, *arguments)
        while batch := await cursor.fetch(size):
            yield batch


async def take_place(
    places: asyncio.Semaphore, seconds: float, reason: str, detail: str = BUSY
) -> None:
    """
    Raises:
        Unavailable: no place became free within so many seconds.
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
    """The SQL of a statement, and its arguments in their order; what is inserted or updated are
    the columns that have values.

    Raises:
        InvalidRequestError: a parameter has no value.
        ArgumentError: it has `in_` with a list, which only SQLAlchemy itself can send.
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
    """How a statement is compiled; and what else SQLAlchemy does when it sends one: the defaults
    of columns that are made here, and what their types make of values."""
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
    """As SQLAlchemy does on its own connections: it comes out as objects, and goes in as text."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=str, decoder=orjson.loads
        )


async def _part(connection: Connection, seconds: float) -> None:
    """Closes a connection; asyncpg cancels what still runs in it."""
    with suppress(OSError, PostgresError, InterfaceError):  # also that it took too long
        async with asyncio.timeout(seconds):
            await connection.close()
