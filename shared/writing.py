"""Writing: a transaction of statements of SQLAlchemy Core, sent by asyncpg itself as reads are."""

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
    """A write session: one transaction, whose statements see what those before them did."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(lambda: nullcontext(connection))
        self._connection = connection

    async def execute(self, statement: Executable, values: Mapping[str, Any] = NOTHING) -> None:
        """A statement that has no rows to give; raises as `fetch` does."""
        await self.fetch(statement, values)

    async def copy(
        self, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]]
    ) -> None:
        """COPY of these records into a table; raises as `fetch` does."""
        await self._connection.copy_records_to_table(table, columns=columns, records=records)


@asynccontextmanager
async def unit_of_work(connection: Connection, begin: str) -> AsyncIterator[Writing]:
    """A transaction that this statement begins: committed at the end, rolled back on any error.

    Raises:
        Unavailable: the connection was lost.
        PostgresError: it cannot be committed.
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
    # Where a statement has failed, and nobody minded, PostgreSQL rolls back and calls it no error.
    if await connection.execute("COMMIT") == "ROLLBACK":
        raise RuntimeError("A statement had failed: nothing was committed")


async def _roll_back(connection: Connection) -> None:
    """Leaves nothing on the connection, or nobody will have it again."""
    if connection.is_closed():
        return
    rolled_back = False
    try:
        async with asyncio.timeout(PART_TIMEOUT_SECONDS):
            await connection.execute("ROLLBACK")
            rolled_back = True
    except (OSError, PostgresError) as error:
        log.warning("connection_given_up", error=repr(error))
    except Exception:  # two statements at once, for one: a bug of ours
        log.exception("connection_given_up")
    finally:
        if not rolled_back:
            connection.terminate()
