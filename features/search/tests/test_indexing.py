"""The index stays consistent with the items after every kind of write; the queue loses no row."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.search.indexing import documents, statistics, sweep
from features.search.indexing.documents import WEIGHTS
from features.search.runtime import runtime_of
from features.search.tasks import embedding_task, statistics_task
from features.search.tests.conftest import Index, Write, add_item
from features.search.tests.test_search import find, titles
from shared.db import database_of, tables
from tests.kit import max_queries, run_all_tasks, run_outbox, run_until_idle, within

Database = asyncpg.Connection
PASS_HOURS = "UPDATE users SET deleted_at = deleted_at - interval '3 hours'"
SEARCH_TABLES = ("documents", "embeddings", "queue", "pending", "terms", "words", "owners")

IS_CONSISTENT = """
SELECT
    (SELECT count(*) FROM items) = (SELECT count(*) FROM search_documents)
    AND NOT EXISTS (
        SELECT 1 FROM items i
        LEFT JOIN search_documents d ON d.owner_id = i.owner_id AND d.item_id = i.id
        LEFT JOIN search_embeddings e ON e.owner_id = i.owner_id AND e.item_id = i.id
        WHERE d.text_hash IS DISTINCT FROM search_text_hash(i.title, i.description)
        OR e.text_hash IS DISTINCT FROM d.text_hash)
    AND (SELECT count(*) FROM items) = (SELECT count(*) FROM search_embeddings)
    AND NOT EXISTS (SELECT 1 FROM search_queue) AND NOT EXISTS (SELECT 1 FROM search_pending)
"""
SELECT_WRONG_STATISTICS = """
SELECT owner_id::text, lexeme, count(*) AS documents
FROM search_documents, unnest(tsvector_to_array(terms)) AS lexeme
WHERE lexeme <> search_owner_term(owner_id) GROUP BY 1, 2
EXCEPT SELECT owner_id::text, lexeme, documents FROM search_terms
"""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def add(client: AsyncClient, *items: str) -> list[dict[str, Any]]:
    return [
        (await client.post("/items", json={"title": title, "price": 5})).json() for title in items
    ]


@pytest.mark.one_server
async def test_a_sweep_finds_what_was_changed_past_the_service(
    app: FastAPI, client: AsyncClient, index: Index, database: Database
) -> None:
    await add(client, "Copper kettle")
    await index()
    await database.execute(
        "INSERT INTO items (id, owner_id, title, price) "
        "SELECT gen_random_uuid(), owner_id, 'Kettle ' || n, 1 FROM items, generate_series(1, 50) n"
    )
    assert await sweep(database_of(app)) == 50
    await database.execute("UPDATE items SET title = 'Iron pan' WHERE title = 'Kettle 7'")
    await database.execute("UPDATE items SET price = 2 WHERE title = 'Kettle 8'")
    await database.execute("DELETE FROM items WHERE title = 'Kettle 9'")
    await database.execute("UPDATE items SET id = gen_random_uuid() WHERE title = 'Kettle 10'")
    assert await sweep(database_of(app)) == 4
    assert (await find(client, "kettle", mode="lexical"))["total"] == 49
    assert titles(await find(client, "pan", mode="lexical")) == ["Iron pan"]
    await index()
    assert await database.fetchval(IS_CONSISTENT)
    assert await database.fetch(SELECT_WRONG_STATISTICS) == []
    await database.execute("TRUNCATE items CASCADE")
    assert await sweep(database_of(app)) == 50
    assert (await find(client, "kettle", mode="lexical"))["total"] == 0
    await index()
    assert await database.fetchval(IS_CONSISTENT)


@pytest.mark.one_server
async def test_an_item_that_changes_hands_takes_its_index_along(
    app: FastAPI,
    client: AsyncClient,
    other_client: AsyncClient,
    index: Index,
    database: Database,
) -> None:
    (item,) = await add(client, "Copper kettle")
    (theirs,) = await add(other_client, "Iron pan")
    await index()
    await database.execute(
        "UPDATE items SET owner_id = (SELECT owner_id FROM items WHERE id = $1) WHERE id = $2",
        theirs["id"],
        item["id"],
    )
    assert await sweep(database_of(app)) == 2
    await index()
    assert await database.fetchval(IS_CONSISTENT)
    for mode in ("lexical", "semantic", "hybrid"):
        assert titles(await find(client, "kettle", mode=mode)) == []
        assert "Copper kettle" in titles(await find(other_client, "kettle", mode=mode))


async def test_a_change_of_the_price_alone_costs_search_nothing(client: AsyncClient) -> None:
    (item,) = await add(client, "Copper kettle")
    path = f"/items/{item['id']}"
    with max_queries(2):  # of the items: the lock, and the update
        await client.patch(path, json={"price": 6})
    await client.patch(path, json={"price": 7, "title": "Iron pan"})
    assert titles(await find(client, "pan", mode="lexical")) == ["Iron pan"]
    await client.patch(path, json={"description": "for crayfish"})
    assert titles(await find(client, "crayfish", mode="lexical")) == ["Iron pan"]


async def test_an_import_is_found(client: AsyncClient, index: Index, database: Database) -> None:
    lines = "\n".join(
        f'{{"external_id": "{n}", "title": "Kettle {n}", "price": 5}}' for n in range(300)
    )
    headers = {"Content-Type": "application/jsonl"}
    assert (await client.post("/items/import", content=lines, headers=headers)).status_code == 200
    assert (await find(client, "kettle", mode="lexical"))["total"] == 300
    again = lines.replace("Kettle 1", "Teapot 1")
    assert (await client.post("/items/import", content=again, headers=headers)).status_code == 200
    await index()
    assert (await find(client, "kettle", mode="lexical"))["total"] == 189
    assert await database.fetchval(IS_CONSISTENT)
    assert await database.fetch(SELECT_WRONG_STATISTICS) == []


async def test_a_rolled_back_write_leaves_no_trace(
    client: AsyncClient, index: Index, database: Database
) -> None:
    await add(client, "Copper kettle")
    await index()
    transaction = database.transaction()
    await transaction.start()
    await database.execute("UPDATE items SET title = 'Iron pan'")
    await transaction.rollback()
    assert titles(await find(client, "kettle", mode="lexical")) == ["Copper kettle"]
    assert titles(await find(client, "pan", mode="lexical")) == []


async def test_words_and_statistics_go_with_the_items(
    app: FastAPI, client: AsyncClient, index: Index, database: Database
) -> None:
    (kettle, _) = await add(client, "Copper kettle", "Copper pan")
    await index()
    await client.delete(f"/items/{kettle['id']}")
    await index()
    words = await database.fetch("SELECT word FROM search_words ORDER BY word")
    assert [row["word"] for row in words] == ["copper", "pan"]
    assert await database.fetchval("SELECT documents FROM search_owners") == 1
    await client.delete("/users/me")
    await run_all_tasks(app)
    for table in SEARCH_TABLES:
        assert await database.fetchval(f"SELECT count(*) FROM search_{table}") == 0, table


async def test_weights_follow_the_average_length(
    client: AsyncClient, index: Index, database: Database
) -> None:
    await add(client, *(f"Cup {n}" for n in range(5)))
    await index()
    for n in range(5):
        long = {"title": f"Pot {n}", "price": 1, "description": "word " * 100}
        assert (await client.post("/items", json=long)).status_code == 201
    await index()
    off = await database.fetchval(
        "SELECT count(*) FROM search_documents JOIN search_owners USING (owner_id) "
        "WHERE average_length NOT BETWEEN search_owners.length::real / documents / 1.2 "
        "AND search_owners.length::real / documents * 1.2"
    )
    assert off == 0
    assert await database.fetchval("SELECT count(*) FROM search_owners WHERE stale") == 0


@pytest.mark.parametrize("title", ["The", "???", "🫖"])
async def test_items_without_words_leave_nothing_to_do(
    app: FastAPI, client: AsyncClient, index: Index, database: Database, title: str
) -> None:
    await add(client, title)
    async with within(20, "the end of the statistics"):
        await index()
    assert await run_until_idle(app, statistics_task) == 0
    assert await database.fetchval("SELECT count(*) FROM search_owners WHERE stale") == 0


async def test_a_deleted_account_leaves_nothing_of_an_item_that_was_being_added(
    app: FastAPI, client: AsyncClient, write: Write, database: Database
) -> None:
    async with write() as (session, owner_id):
        await add_item(session, owner_id, "Copper kettle")
        assert (await client.delete("/users/me")).status_code == 204
        await run_all_tasks(app)
    await database.execute(PASS_HOURS)
    await run_all_tasks(app)
    for table in SEARCH_TABLES:
        assert await database.fetchval(f"SELECT count(*) FROM search_{table}") == 0, table
    assert await database.fetchval("SELECT count(*) FROM items") == 0
    assert await database.fetchval("SELECT count(*) FROM users") == 0


async def test_a_deleted_account_leaves_no_words_that_were_being_counted(
    app: FastAPI,
    client: AsyncClient,
    index: Index,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await index()
    await add(client, "Copper kettle")
    count = statistics._count

    async def count_while_deleting(*arguments: Any) -> None:
        await count(*arguments)
        assert (await client.delete("/users/me")).status_code == 204

    monkeypatch.setattr(statistics, "_count", count_while_deleting)
    assert await statistics_task.run(app) == 1
    await run_all_tasks(app)
    await database.execute(PASS_HOURS)
    await run_all_tasks(app)
    for table in SEARCH_TABLES:
        assert await database.fetchval(f"SELECT count(*) FROM search_{table}") == 0, table
    assert await database.fetchval("SELECT count(*) FROM items") == 0
    assert await database.fetchval("SELECT count(*) FROM users") == 0


async def test_a_deleted_account_is_forgotten_in_batches(
    app: FastAPI,
    client: AsyncClient,
    other_client: AsyncClient,
    index: Index,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "OWNED_ROWS_PER_BATCH", 2)
    monkeypatch.setattr(documents, "OWNED_ROWS_PER_BATCH", 2)
    await add(other_client, "Iron pan")
    await add(client, *(f"Copper kettle {n}" for n in range(7)))
    await index()
    await client.delete("/users/me")
    batches = await run_outbox(app, "search_accounts")
    assert batches > 7 / 2
    for table in ("documents", "embeddings", "words", "owners"):
        owners = f"SELECT count(DISTINCT owner_id) FROM search_{table}"
        assert await database.fetchval(owners) == 1, table
    assert titles(await find(other_client, "pan")) == ["Iron pan"]


@pytest.mark.one_server
async def test_an_account_is_deleted_while_its_items_are_being_embedded(
    app: FastAPI, client: AsyncClient, index: Index, database: Database
) -> None:
    await add(client, "Copper kettle")
    await run_until_idle(app, statistics_task)
    async with database.transaction():
        await database.execute("SELECT FROM search_queue FOR UPDATE")
        assert (await client.delete("/users/me")).status_code == 204
    await index()
    assert await database.fetchval("SELECT count(*) FROM search_queue") == 0


async def test_what_is_marked_and_has_its_embedding_is_not_embedded_again(
    app: FastAPI, client: AsyncClient, index: Index, database: Database
) -> None:
    await add(client, "Copper kettle", "Iron pan")
    await index()
    await database.execute("TRUNCATE search_owners, search_terms, search_words")
    await database.execute(
        "INSERT INTO search_pending (owner_id, item_id) "
        "SELECT owner_id, item_id FROM search_documents"
    )
    await run_until_idle(app, statistics_task)
    assert await database.fetchval("SELECT count(*) FROM search_queue") == 0
    assert await database.fetch(SELECT_WRONG_STATISTICS) == []


async def test_weights_follow_the_constants_of_the_ranking(
    client: AsyncClient, index: Index, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(client, "Tin cup", "Cup cup cup")
    await index()
    weights = "SELECT weights::text FROM search_documents ORDER BY item_id"
    before = await database.fetch(weights)
    monkeypatch.setitem(WEIGHTS, "k1", 5.0)
    await index()
    assert await database.fetch(weights) == before  # the version says which they are
    monkeypatch.setitem(WEIGHTS, "version", 2)
    await index()
    after = await database.fetch(weights)
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert await database.fetchval("SELECT min(weights_version) FROM search_documents") == 2
    assert await database.fetchval("SELECT count(*) FROM search_owners WHERE stale") == 0


@pytest.mark.one_server
async def test_weights_that_somebody_holds_are_made_anew_later(
    client: AsyncClient, index: Index, database: Database, database_url: str
) -> None:
    await add(client, "Cup")
    await index()
    await client.post("/items", json={"title": "Pot", "price": 1, "description": "word " * 100})
    other = await asyncpg.connect(database_url)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT FROM search_documents FOR SHARE")
    await index()
    await transaction.rollback()
    await other.close()
    await index()
    assert await database.fetchval("SELECT min(average_length) FROM search_documents") > 50
    assert await database.fetchval("SELECT count(*) FROM search_owners WHERE stale") == 0


async def test_a_change_during_embedding_is_not_lost(
    app: FastAPI, client: AsyncClient, index: Index, database: Database, monkeypatch: Any
) -> None:
    (item,) = await add(client, "Copper kettle")
    await run_until_idle(app, embedding_task)
    embedders = runtime_of(app).embedders
    embedder = embedders.get(embedders.configured)
    assert embedder
    embed_documents = embedder.embed_documents

    async def change_meanwhile(texts: list[str]) -> Any:
        monkeypatch.undo()
        changed = await client.patch(f"/items/{item['id']}", json={"title": "Iron pan"})
        assert changed.status_code == 200  # not blocked by the running embedding
        return await embed_documents(texts)

    await client.patch(f"/items/{item['id']}", json={"title": "Copper pot"})
    monkeypatch.setattr(embedder, "embed_documents", change_meanwhile)
    await index()
    await index()
    assert await database.fetchval(IS_CONSISTENT)


async def test_writers_of_one_owner_do_not_wait_for_each_other(
    client: AsyncClient, write: Write
) -> None:
    await add(client, "Copper kettle")
    async with write() as (session, owner_id):
        await add_item(session, owner_id, "Copper kettle")
        async with within(2, "a write while another is open"):
            await add(client, "Copper kettle")
    assert (await find(client, "kettle", mode="lexical"))["total"] == 3


async def test_status_counts_what_waits(client: AsyncClient, index: Index) -> None:
    await add(client, "Copper kettle", "Iron pan")
    before = (await client.get("/search/status")).json()
    assert (before["indexed"], before["pending"], before["parked"]) == (0, 2, 0)
    await index()
    assert (await client.get("/search/status")).json() == {
        "indexed": 2,
        "pending": 0,
        "parked": 0,
        "model": "all-MiniLM-L6-v2",
        "dimension": 384,
        "parked_items": [],
    }
    await add(client, "Tin cup")
    after = (await client.get("/search/status")).json()
    assert (after["indexed"], after["pending"]) == (2, 1)


async def test_status_counts_as_indexed_what_is_embedded(
    client: AsyncClient, index: Index, database: Database
) -> None:
    await index()
    await add(client, "Copper kettle")
    await database.execute("DELETE FROM search_queue")  # simulates a lost queue
    assert (await client.get("/search/status")).json()["indexed"] == 0
