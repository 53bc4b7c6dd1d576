"""The cost of a search: the words of its query, and the time of its statements."""

import pytest
from httpx import AsyncClient

from features.search.query import deadline
from features.search.query.parsing import MAX_WORDS
from features.search.tests.test_indexing import Database, database
from features.search.tests.test_search import find, shop
from tests.kit import eventually

__all__ = ["database", "shop"]

COUNT_LOCK_WAITS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


async def test_the_first_words_of_a_query_count(client: AsyncClient) -> None:
    await client.post("/items", json={"title": "Copper kettle", "price": 5})
    others = [f"w{n}" for n in range(MAX_WORDS - 1)]
    for words, total in ([*others, "kettle"], 1), ([*others, "w", "kettle"], 0):
        assert (await find(client, " ".join(words), mode="lexical"))["total"] == total


async def test_a_search_that_takes_too_long_is_given_up(
    shop: AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "SEARCH_SECONDS", 0.2)
    async with database.transaction():
        await database.execute("LOCK search_owners")
        for answer in (
            await shop.get("/search", params={"q": "mug"}),
            await shop.post("/search/vector", json={"vector": [1.0] * 384}),
        ):
            assert answer.status_code == 503
            assert "fewer words" in answer.json()["detail"]
        await eventually(lambda: nothing_waits(database), "the end of the statements")


async def nothing_waits(database: Database) -> bool:
    return not await database.fetchval(COUNT_LOCK_WAITS)
