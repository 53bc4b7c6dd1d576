"""The items of a deleted account go in batches, however many there are."""

import asyncpg
from fastapi import FastAPI
from httpx import AsyncClient

from features.items.handlers.deleted_accounts import DELETED_PER_BATCH
from tests.kit import max_queries, run_all_tasks, run_outbox

ITEMS = 20_000
INSERT_ITEMS = """
INSERT INTO items (id, owner_id, title, price)
SELECT gen_random_uuid(), $1, 'Mug ' || n, 1 FROM generate_series(1, $2) AS n
"""


async def test_a_large_account_is_deleted_at_once_and_its_items_in_batches(
    app: FastAPI, client: AsyncClient, other_client: AsyncClient, database_url: str
) -> None:
    owner_id = (await client.get("/users/me")).json()["id"]
    await other_client.post("/items", json={"title": "Pot", "price": 2})
    database = await asyncpg.connect(database_url)
    try:
        await database.execute(INSERT_ITEMS, owner_id, ITEMS)
        with max_queries(11):
            assert (await client.delete("/users/me")).status_code == 204
        assert (await client.get("/items")).status_code == 401
        assert await database.fetchval("SELECT count(*) FROM items") == ITEMS + 1
        assert await run_outbox(app, "items_accounts") == ITEMS / DELETED_PER_BATCH + 1

        assert await database.fetchval("SELECT count(*) FROM items") == 1
        await run_all_tasks(app)
        assert await database.fetchval("SELECT count(*) FROM users WHERE id = $1", owner_id) == 0
    finally:
        await database.close()
    assert (await other_client.get("/items")).json()["total"] == 1
