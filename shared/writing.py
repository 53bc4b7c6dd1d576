"""Write sessions: transactions of SQLAlchemy Core statements, sent by asyncpg directly."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import structlog
from asyncpg import PostgresError
from sqlalchemy import Executable

from shared.errors import LOST, Unavailable
from shared.reading import LOSSES, NOTHING, PART_TIMEOUT_SECONDS, Connection, Reading

log = structlog.get_logger(__name__)


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
