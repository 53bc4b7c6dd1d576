"""A downgrade of search keeps its queue, in a database that has items."""

import asyncio

import pytest
from alembic import command
from httpx import AsyncClient

from app.migrations import alembic_config
from features.search.tests.conftest import Index
from features.search.tests.test_indexing import Database, add, database
from features.search.tests.test_search import find

__all__ = ["database"]

SELECT_QUEUED = """
SELECT i.title FROM search_queue AS q
JOIN items AS i ON i.id = q.item_id AND i.owner_id = q.owner_id
JOIN search_models AS m ON m.id = q.model_id AND m.active ORDER BY i.title
"""
SELECT_COUNTED = "SELECT count(DISTINCT item_id) FROM search_changes WHERE sign = 1"


@pytest.mark.one_server
async def test_what_waits_for_its_embedding_waits_before_published_changes_too(
    client: AsyncClient, index: Index, database: Database, database_url: str
) -> None:
    await add(client, "Copper kettle", "Iron pan")
    await index()
    pan = (await find(client, "pan", mode="lexical"))["hits"][0]["item"]["id"]
    changed = await client.patch(f"/items/{pan}", json={"title": "Steel pan"})
    assert changed.status_code == 200
    await add(client, "Enamel mug")
    assert await database.fetchval("SELECT count(*) FROM search_pending") == 2
    assert await database.fetchval("SELECT count(*) FROM search_queue") == 0

    config = alembic_config(database_url)
    await asyncio.to_thread(command.downgrade, config, "search_0002")

    queued = [row["title"] for row in await database.fetch(SELECT_QUEUED)]
    assert queued == ["Enamel mug", "Steel pan"]
    assert await database.fetchval(SELECT_COUNTED) == 3
    await asyncio.to_thread(command.upgrade, config, "search@head")
    assert await database.fetchval("SELECT count(*) FROM search_pending") == 3
    await index()
    assert await database.fetchval("SELECT count(*) FROM search_queue") == 0
    assert len((await find(client, "mug steel kettle", mode="lexical"))["hits"]) == 3
