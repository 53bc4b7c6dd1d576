"""A snapshot that is read slowly is given up, since PostgreSQL keeps deleted rows for its sake."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import bindparam, column, select, table, text

from shared.db import Database
from shared.problems import Unavailable
from shared.settings import Settings
from tests.kit import eventually

NUMBERS = table("numbers", column("id"))
SELECT_ALL = select(NUMBERS.c.id).order_by(NUMBERS.c.id)
SELECT_FOLLOWING = SELECT_ALL.where(NUMBERS.c.id > bindparam("after_id"))
COUNT_SNAPSHOTS = text("""
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
AND pid <> pg_backend_pid() AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)
""")


@pytest.fixture
def seconds() -> float:
    return 0.2


@pytest.fixture
async def database(settings: Settings, seconds: float) -> AsyncIterator[Database]:
    assert settings.database_url
    hurried = settings.model_copy(update={"database_snapshot_timeout": seconds})
    opened = Database(settings.database_url, hurried)
    async with opened.transaction() as session:
        await session.execute(text("CREATE TABLE numbers (id int)"))
        await session.execute(text("INSERT INTO numbers SELECT generate_series(1, 10)"))
    yield opened
    await opened.dispose()


async def change(database: Database) -> None:
    """Deletes a number that is not read yet, and adds one before and one after the current one."""
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM numbers WHERE id = 5"))
        await session.execute(text("INSERT INTO numbers VALUES (0), (11)"))


async def wait_until_given_up(database: Database) -> None:
    async def is_given_up() -> bool:
        return bool(await database.read().fetch_value(COUNT_SNAPSHOTS) == 0)

    await eventually(is_given_up, "the end of the snapshot", 30)
    assert database.primary.in_use == 0


async def test_a_slow_reader_gets_the_rest_from_a_new_snapshot(database: Database) -> None:
    read: list[int] = []
    async with database.snapshot() as snapshot:
        async for batch in snapshot.batches(SELECT_ALL, {}, 3, SELECT_FOLLOWING):
            read += [row.id for row in batch]
            if len(read) == 3:
                await wait_until_given_up(database)
                await change(database)
    assert read == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert database.primary.in_use == 0


async def test_a_slow_reader_that_cannot_go_on_is_told(database: Database) -> None:
    async with database.snapshot() as snapshot:
        batches = snapshot.batches(SELECT_ALL, {}, 3)
        await anext(batches)
        await wait_until_given_up(database)
        with pytest.raises(Unavailable, match=r"longer than 0\.2 s"):
            await anext(batches)
    assert database.primary.in_use == 0


@pytest.mark.parametrize("seconds", [60.0])
async def test_a_quick_reader_sees_one_snapshot(database: Database) -> None:
    read: list[int] = []
    async with database.snapshot() as snapshot:
        async for batch in snapshot.batches(SELECT_ALL, {}, 3, SELECT_FOLLOWING):
            if not read:
                await change(database)
            read += [row.id for row in batch]
    assert read == [*range(1, 11)]
