"""Writing: a transaction of statements of SQLAlchemy Core, sent by asyncpg itself as reads are."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, TypeAlias

import structlog
from asyncpg import Connection
from sqlalchemy import Executable

from shared.reading import NOTHING, RELEASE_TIMEOUT_SECONDS, Reading, Row, told_if_lost

Driver: TypeAlias = "Connection[Row]"

log = structlog.get_logger(__name__)


class Writing(Reading):
    """A write session: one transaction, whose statements see what those before them did."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(lambda: nullcontext(driver))
        self._driver = driver

    async def execute(self, statement: Executable, values: Mapping[str, Any] = NOTHING) -> None:
        """A statement that has no rows to give; raises as `fetch` does."""
        await self.fetch(statement, values)

    async def copy(
        self, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]]
    ) -> None:
        """COPY of these records into a table; raises as `fetch` does."""
        await self._driver.copy_records_to_table(table, columns=columns, records=records)


@asynccontextmanager
async def unit_of_work(driver: Driver, begin: str) -> AsyncIterator[Writing]:
    """A transaction that this statement begins: committed at the end, rolled back on any error.

    Raises:
        Unavailable: the connection was lost.
        PostgresError: it cannot be committed.
    """
    with told_if_lost(driver):
        try:
            await driver.execute(begin)
            yield Writing(driver)
            await _commit(driver)
        except BaseException:
            await _roll_back(driver)
            raise


async def _commit(driver: Driver) -> None:
    # Where a statement has failed, and nobody minded, PostgreSQL rolls back and calls it no error.
    if await driver.execute("COMMIT") == "ROLLBACK":
        raise RuntimeError("A statement had failed: nothing was committed")


async def _roll_back(driver: Driver) -> None:
    """Leaves nothing on the connection, or nobody will have it again."""
    rolled_back = False
    try:
        async with asyncio.timeout(RELEASE_TIMEOUT_SECONDS):
            await driver.execute("ROLLBACK")
            rolled_back = True
    except Exception as error:
        log.warning("connection_given_up", error=str(error))
    finally:
        if not rolled_back:
            driver.terminate()
