"""No item, and no owner with many of them, stops or delays the other rows of the background
tasks."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from app.task_runner import run_batch
from features.search.embedding import Vector
from features.search.embedding.local import LocalEmbedder
from features.search.indexing import failed_batches, statistics, sweep
from features.search.indexing.documents import MAX_TERMS
from features.search.tasks import embedding_task, statistics_task
from features.search.tests.conftest import Index
from features.search.tests.fake_endpoint import Endpoint
from features.search.tests.test_indexing import (
    IS_CONSISTENT,
    SELECT_WRONG_STATISTICS,
    Database,
    add,
    database,
)
from features.search.tests.test_models import endpoint, quick_retries, timeouts
from features.search.tests.test_search import find, titles
from shared.db import database_of
from tests.kit import run_until_idle

__all__ = ["database", "endpoint", "quick_retries", "timeouts"]

# Stands for a statement that is cancelled by its timeout where it writes too many rows at once, and
# for one that fails on a certain item.
REFUSE_ROWS = """
CREATE FUNCTION refuse_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT count(*) FROM written) > 10 THEN
        RAISE SQLSTATE '57014';
    ELSIF EXISTS (SELECT FROM written WHERE to_jsonb(written)::text LIKE '%arsen%') THEN
        RAISE SQLSTATE '22000' USING MESSAGE = 'not this one';
    END IF;
    RETURN NULL;
END $$
"""
REFUSE_ROWS_OF = """
CREATE TRIGGER refuse_rows AFTER INSERT ON {table} REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION refuse_rows()
"""

Refuse = Callable[[str], Awaitable[None]]


@pytest.fixture
def refuse(database: Database) -> Refuse:
    """Lets a table refuse more than ten rows in a statement, and rows with the word arsenic."""

    async def create_trigger(table: str) -> None:
        await database.execute(REFUSE_ROWS)
        await database.execute(REFUSE_ROWS_OF.format(table=table))

    return create_trigger


async def import_items(client: AsyncClient, titles: list[str]) -> None:
    lines = "\n".join(
        f'{{"external_id": "{n}", "title": "{title}", "price": 5}}'
        for n, title in enumerate(titles)
    )
    headers = {"Content-Type": "application/jsonl"}
    answer = await client.post("/items/import", content=lines, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.one_server
async def test_items_that_cannot_be_counted_are_parked_and_stop_nobody(
    app: FastAPI,
    client: AsyncClient,
    other_client: AsyncClient,
    index: Index,
    database: Database,
    refuse: Refuse,
) -> None:
    await index()
    await refuse("search_terms")
    await import_items(client, ["Jar of arsenic", *(f"Kettle k{n}" for n in range(60))])
    await add(other_client, "Copper pan")
    await index()
    assert (await other_client.get("/search/status")).json()["indexed"] == 1
    status = (await client.get("/search/status")).json()
    assert (status["indexed"], status["pending"], status["parked"]) == (60, 1, 0)
    assert await database.fetchval("SELECT attempts FROM search_pending") >= 1
    for _ in range(statistics.MAX_ATTEMPTS):
        await database.execute("UPDATE search_pending SET next_attempt_at = now()")
        await index()
    status = (await client.get("/search/status")).json()
    assert (status["indexed"], status["pending"], status["parked"]) == (60, 0, 1)
    assert status["parked_items"][0]["attempts"] == statistics.MAX_ATTEMPTS
    assert status["parked_items"][0]["error"] == "not this one"
    assert titles(await find(client, "arsenic", mode="lexical")) == ["Jar of arsenic"]
    backlog = await database.fetchrow(str(statistics_task.backlog))
    assert backlog
    assert tuple(backlog)[:2] == (0, 1)

    item = status["parked_items"][0]["item_id"]
    await client.patch(f"/items/{item}", json={"title": "Jar of sugar"})
    await index()
    assert await database.fetchval(IS_CONSISTENT)
    assert await database.fetch(SELECT_WRONG_STATISTICS) == []


@pytest.mark.parametrize("is_queued", [False, True])
async def test_an_edit_does_not_wait_for_an_import_of_its_owner(
    app: FastAPI,
    client: AsyncClient,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
    is_queued: bool,
) -> None:
    """It is found by its meaning after the next batch, whether its words or its embedding wait."""
    await index()
    monkeypatch.setattr(statistics, "ITEMS_PER_BATCH", 200)
    await import_items(client, [f"Kettle k{n}" for n in range(5_000)])
    if is_queued:
        await run_until_idle(app, statistics_task)
    else:
        await run_batch(app, statistics_task)
    for order, title in (("created_at", "Wooden rocking horse"), ("-created_at", "Rag doll")):
        [item] = (await client.get("/items", params={"limit": 1, "sort": order})).json()["items"]
        await client.patch(f"/items/{item['id']}", json={"title": title})
        await run_batch(app, statistics_task)
        await run_batch(app, embedding_task)
        assert titles(await find(client, title.lower(), mode="semantic"))[0] == title


async def test_items_of_many_words_are_counted_in_small_batches(
    app: FastAPI,
    client: AsyncClient,
    index: Index,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await index()
    monkeypatch.setattr(statistics, "WORDS_PER_BATCH", 30)
    await import_items(
        client, [f"Kettle {' '.join(f'k{n}x{m}' for m in range(9))}" for n in range(7)]
    )
    assert await statistics_task.run(app) == 1  # each has 20 words, as those of a title count twice
    await run_until_idle(app, statistics_task)
    assert await database.fetch(SELECT_WRONG_STATISTICS) == []


async def test_the_first_words_of_an_item_are_indexed(
    client: AsyncClient, index: Index, database: Database
) -> None:
    words = [chr(code) for code in range(0x4E00, 0x4E00 + 4_000)]
    item = {"title": "Kettle", "price": 5, "description": " ".join(words)}
    assert (await client.post("/items", json=item)).status_code == 201
    await index()
    last = words[MAX_TERMS - 2]  # after that of the title
    assert (await find(client, last, mode="lexical"))["total"] == 1
    assert (await find(client, words[MAX_TERMS - 1], mode="lexical"))["total"] == 0
    for table in ("terms", "words"):
        assert await database.fetchval(f"SELECT count(*) FROM search_{table}") <= MAX_TERMS
    assert await database.fetch(SELECT_WRONG_STATISTICS) == []


@pytest.mark.one_server
async def test_a_sweep_goes_on_after_an_item_that_cannot_be_indexed(
    app: FastAPI,
    client: AsyncClient,
    database: Database,
    refuse: Refuse,
    events: list[Mapping[str, Any]],
) -> None:
    await add(client, "Copper kettle")
    await refuse("search_documents")
    await database.execute(
        "INSERT INTO items (id, owner_id, title, price) "
        "SELECT gen_random_uuid(), owner_id, CASE n WHEN 7 THEN 'Arsenic' ELSE 'Pot ' || n END, 1 "
        "FROM items, generate_series(1, 60) AS n"
    )
    assert await sweep(database_of(app)) == 59
    assert (await find(client, "pot", mode="lexical"))["total"] == 59
    assert [event["event"] for event in events if event["level"] == "error"] == ["item_not_indexed"]


ADD_THOUSANDS = """
INSERT INTO items (id, owner_id, title, price)
SELECT gen_random_uuid(), owner_id, 'Pot ' || n, 1 FROM items, generate_series(1, 2500) AS n
"""


async def test_an_item_waits_for_no_backlog_of_a_neighbour(
    endpoint: Endpoint,
    app: FastAPI,
    client: AsyncClient,
    other_client: AsyncClient,
    index: Index,
    database: Database,
) -> None:
    await add(client, "Copper kettle")
    await index()
    await database.execute(ADD_THOUSANDS)
    await sweep(database_of(app))
    await add(other_client, "Iron pan")
    assert await statistics_task.run(app) == 1_001
    assert (await find(other_client, "panns", mode="lexical"))["total"] == 1
    assert await embedding_task.run(app) == 64
    assert (await other_client.get("/search/status")).json()["indexed"] == 1
    await run_until_idle(app, statistics_task)
    await add(other_client, *(f"Tin cup {n}" for n in range(40)))
    await statistics_task.run(app)
    endpoint.requests.clear()
    assert await embedding_task.run(app) == 64
    (texts,) = endpoint.requests
    assert len([text for text in texts if "Tin cup" in text]) == 32  # half of the batch


async def test_a_text_that_breaks_the_model_is_tried_alone(
    app: FastAPI,
    client: AsyncClient,
    other_client: AsyncClient,
    index: Index,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await index()
    embed_documents = LocalEmbedder.embed_documents
    batches = []

    async def embed_or_break(self: LocalEmbedder, texts: Sequence[str]) -> list[Vector]:
        batches.append([text.strip() for text in texts])
        if any("arsenic" in text for text in texts):
            raise RuntimeError("the model is broken")
        return await embed_documents(self, texts)

    monkeypatch.setattr(LocalEmbedder, "embed_documents", embed_or_break)
    await add(client, "Jar of arsenic", "Copper kettle")
    await add(other_client, "Iron pan")
    await index()
    assert batches[2] == ["Iron pan"]  # after the batch and the probe: the owner with the least
    error = await database.fetchval("SELECT error FROM search_queue WHERE attempts > 0")
    assert "the model is broken" in error
    assert (await client.get("/search/status")).json()["indexed"] == 1


@pytest.mark.one_server
async def test_embeddings_that_take_too_long_to_store_are_stored_in_parts(
    client: AsyncClient, index: Index, database: Database, refuse: Refuse
) -> None:
    await index()
    await refuse("search_embeddings")
    await import_items(client, [f"Kettle {n}" for n in range(40)])
    await index()
    assert await database.fetchval(IS_CONSISTENT)


async def test_texts_that_take_long_to_fail_let_others_have_their_turn(
    endpoint: Endpoint,
    client: AsyncClient,
    other_client: AsyncClient,
    index: Index,
    app: FastAPI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await index()
    monkeypatch.setattr(failed_batches, "PARTS_SECONDS", 0.0)
    endpoint.poison = "arsenic"
    await import_items(client, [f"Jar {n} of arsenic" for n in range(20)])
    await run_until_idle(app, statistics_task)
    endpoint.requests.clear()
    assert await embedding_task.run(app) == 1
    assert list(map(len, endpoint.requests)) == [20, 1, 3, 1, 1, 1]  # with a probe for each failure
    await add(other_client, "Copper kettle")
    await run_until_idle(app, statistics_task)
    await embedding_task.run(app)
    assert (await other_client.get("/search/status")).json()["indexed"] == 1
    await index()
    status = (await client.get("/search/status")).json()
    assert (status["indexed"], status["pending"]) == (0, 20)


async def test_a_batch_of_long_texts_has_fewer_of_each_owner(
    endpoint: Endpoint, app: FastAPI, client: AsyncClient, other_client: AsyncClient, index: Index
) -> None:
    await index()
    for each, word in ((client, "kettle "), (other_client, "teapot ")):
        item = {"title": "Long", "price": 5, "description": word * 400}
        for _ in range(12):
            assert (await each.post("/items", json=item)).status_code == 201
    await run_until_idle(app, statistics_task)
    endpoint.requests.clear()
    await embedding_task.run(app)
    (texts,) = endpoint.requests
    kettles = len([text for text in texts if "kettle" in text])
    assert (len(texts), kettles) in {(13, 6), (13, 7)}


async def test_an_item_is_tried_again_while_a_neighbour_always_has_new_ones(
    endpoint: Endpoint,
    app: FastAPI,
    client: AsyncClient,
    other_client: AsyncClient,
    index: Index,
    database: Database,
) -> None:
    await index()
    endpoint.poison = "arsenic"
    await add(client, "Jar of arsenic")
    await run_until_idle(app, statistics_task)
    await embedding_task.run(app)
    endpoint.poison = "sugar"
    await import_items(other_client, [f"Kettle {n}" for n in range(200)])
    await run_until_idle(app, statistics_task)
    await database.execute("UPDATE search_queue SET next_attempt_at = now()")
    assert await embedding_task.run(app) == 65  # a batch, and the one that failed before
    assert (await client.get("/search/status")).json()["indexed"] == 1
    assert (await other_client.get("/search/status")).json()["indexed"] == 64


async def test_items_that_fail_again_and_again_leave_others_their_batches(
    endpoint: Endpoint,
    app: FastAPI,
    client: AsyncClient,
    other_client: AsyncClient,
    index: Index,
    database: Database,
) -> None:
    await index()
    endpoint.poison = "arsenic"
    await import_items(client, [f"Jar {n} of arsenic" for n in range(8)])
    await run_until_idle(app, statistics_task)
    await embedding_task.run(app)
    await database.execute("UPDATE search_queue SET next_attempt_at = now()")
    await add(other_client, "Copper kettle")
    await run_until_idle(app, statistics_task)
    await embedding_task.run(app)
    assert (await other_client.get("/search/status")).json()["indexed"] == 1
