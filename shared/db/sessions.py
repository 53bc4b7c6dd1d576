"""The sessions of the database: reads in autocommit mode, snapshots to stream, and transactions.

Statements are SQLAlchemy Core's, sent by asyncpg directly, and return rows. SQLAlchemy's own
connection spends more time around a statement than the statement takes
(`python -m tests.benchmarks.layers`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, TypeAlias

import structlog
from asyncpg import PostgresError
from sqlalchemy import Executable

from shared.db.errors import LOSSES, LOST
from shared.db.pool import PART_TIMEOUT_SECONDS, Connection, Row
from shared.db.statements import compiled
from shared.problems import Unavailable

NOTHING: Mapping[str, Any] = {}

log = structlog.get_logger(__name__)

Connections: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]


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


class Writing(Reading):
    """A write session: one transaction, in which each statement sees the changes before it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(lambda: nullcontext(connection))
        self._connection = connection

    async def execute(self, statement: Executable, values: Mapping[str, Any] = NOTHING) -> None:
        """Runs a statement that returns no rows; raises as `fetch` does."""
        await self.fetch(statement, values)

    async def copy(
        self, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]]
    ) -> None:
        """Inserts the records into a table with COPY; raises as `fetch` does."""
        await self._connection.copy_records_to_table(table, columns=columns, records=records)


@asynccontextmanager
async def unit_of_work(connection: Connection, begin: str) -> AsyncIterator[Writing]:
    """Begins a transaction with `begin`; commits it at the end, or rolls it back on any error.

    Raises:
        Unavailable: the connection is lost.
        PostgresError: the commit fails.
        RuntimeError: a statement failed and its error was suppressed.
    """
    try:
        await connection.execute(begin)
        yield Writing(connection)
        await _commit(connection)
    except BaseException as error:
        await _roll_back(connection)
        if isinstance(error, LOSSES) and connection.is_closed():
            raise Unavailable(LOST) from error
        raise


async def _commit(connection: Connection) -> None:
    # If a statement failed and its error was suppressed, COMMIT rolls back without an error.
    if await connection.execute("COMMIT") == "ROLLBACK":
        raise RuntimeError("A statement had failed: nothing was committed")


async def _roll_back(connection: Connection) -> None:
    """Rolls back; where that fails, closes the connection, so that it is not used again."""
    if connection.is_closed():
        return
    rolled_back = False
    try:
        async with asyncio.timeout(PART_TIMEOUT_SECONDS):
            await connection.execute("ROLLBACK")
            rolled_back = True
    except (OSError, PostgresError) as error:
        log.warning("connection_given_up", error=repr(error))
    except Exception:  # a bug in our code, such as two concurrent statements
        log.exception("connection_given_up")
    finally:
        if not rolled_back:
            connection.terminate()
