"""Items get another primary key, and lose a foreign key, in a database that has items."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from alembic import command
from httpx import AsyncClient

from app.migrations import MigrationError, alembic_config, upgrade

SELECT_KEYS = """
SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint
WHERE conrelid = 'items'::regclass AND contype IN ('p', 'f') ORDER BY conname
"""
OLD_KEYS = {
    "pk_items": "PRIMARY KEY (id)",
    "fk_items_owner_id": "FOREIGN KEY (owner_id) REFERENCES users(id) ON DELETE CASCADE",
}
NEW_KEYS = {"pk_items": "PRIMARY KEY (owner_id, id)"}
LEFT_BY_AN_ABORT = "CREATE UNIQUE INDEX uq_items_owner_id_id ON items (owner_id, id)"
INDEXES = "SELECT indexname FROM pg_indexes WHERE tablename = 'items' ORDER BY 1"

Connection = asyncpg.Connection


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    connection: Connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def keys(connection: Connection) -> dict[str, Any]:
    return {row["conname"]: row["definition"] for row in await connection.fetch(SELECT_KEYS)}


@pytest.mark.one_server
async def test_the_owner_becomes_the_first_column_of_the_key(
    client: AsyncClient, connection: Connection, database_url: str
) -> None:
    made = await client.post("/items", json={"title": "Mug", "price": 5})
    indexes = await connection.fetch(INDEXES)
    await asyncio.to_thread(command.downgrade, alembic_config(database_url), "items_0003")
    assert await keys(connection) == OLD_KEYS
    await connection.execute(LEFT_BY_AN_ABORT)
    await asyncio.to_thread(upgrade, database_url)
    assert await keys(connection) == NEW_KEYS
    assert await connection.fetch(INDEXES) == indexes
    changed = await client.patch(made.headers["location"], json={"title": "Cup"})
    assert changed.json()["title"] == "Cup"


@pytest.mark.verify
async def test_a_migration_that_waits_for_a_writer_gives_up_and_can_run_again(
    client: AsyncClient, connection: Connection, database_url: str
) -> None:
    await client.post("/items", json={"title": "Mug", "price": 5})
    await asyncio.to_thread(command.downgrade, alembic_config(database_url), "items_0004")
    async with connection.transaction():
        await connection.execute("UPDATE items SET price = 6")
        with pytest.raises(MigrationError, match=r"0005_primary_key.*lock timeout"):
            await asyncio.to_thread(upgrade, database_url)
    assert await keys(connection) == OLD_KEYS
    await asyncio.to_thread(upgrade, database_url)
    assert await keys(connection) == NEW_KEYS
    assert (await client.get("/items")).json()["items"][0]["price"] == 6
