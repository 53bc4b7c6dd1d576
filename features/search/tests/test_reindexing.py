"""The first start, and changes of model or language, with concurrent searches and writes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, NoReturn
from uuid import UUID

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import TextClause

from features.items import ItemUpdate, update_item
from features.search.embedding import Embedder, Embedders
from features.search.indexing import documents, embed_due, embeddings, reindex, reindexing
from features.search.runtime import runtime_of
from features.search.settings import SearchSettings
from features.search.tests.conftest import Index, Write, add_item
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
from shared.cache import open_cache
from shared.db import database_of
from shared.problems import Unavailable
from tests.kit import Command, eventually, within
from tests.kit.queries import recorded_queries

__all__ = ["database", "endpoint", "quick_retries", "timeouts"]

INSERT_ITEM = (
    "INSERT INTO items (id, owner_id, title, price) "
    "SELECT gen_random_uuid(), owner_id, $1, 1 FROM items LIMIT 1"
)


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[Database]:
    """A connection for long-running transactions that write."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


def configured_embedder(app: FastAPI) -> Embedder:
    embedders = runtime_of(app).embedders
    embedder = embedders.get(embedders.configured)
    assert embedder
    return embedder


async def embed_locally(app: FastAPI) -> None:
    """Embeds all queued items with the packaged model, as before a change of the settings."""
    local = Embedders(SearchSettings(embedding_provider="local"), open_cache(None))
    while await embed_due(database_of(app), local, "english"):
        pass
    await local.close()


async def wait_until_sent_twice(
    statement: TextClause, sent: list[str], reindexing: asyncio.Task[None]
) -> None:
    """Waits until the reindex has sent the statement twice, so at least once without success."""
    start, *_ = str(statement).partition(":")

    def twice() -> bool:
        assert not reindexing.done(), "the reindex did not wait for the writer"
        return sum(each.startswith(start) for each in sent) >= 2

    await eventually(twice, f"a second {start!r}", 30)


async def test_a_new_model_takes_over_without_a_gap(
    endpoint: Endpoint,
    app: FastAPI,
    client: AsyncClient,
    index: Index,
    database: Database,
    write: Write,
) -> None:
    await add(client, *(f"Kettle {n}" for n in range(72)))
    await embed_locally(app)
    assert (await client.get("/search/status")).json()["model"] == "all-MiniLM-L6-v2"

    embedder = configured_embedder(app)  # the API has started with the new settings
    run = reindex(database_of(app), embedder, "english")
    step = await anext(run)  # interrupted after its first batch
    assert step == ("embedding", 8)
    await run.aclose()
    assert (await find(client, "kettle", mode="semantic", explain=True))["explanation"][
        "model"
    ] == "all-MiniLM-L6-v2"
    await add(client, "Teapot")

    before = runtime_of(app).active
    async with AsyncExitStack() as open_write:
        steps = []
        async for doing, waiting in reindex(database_of(app), embedder, "english"):
            steps.append(waiting)
            if doing == "building the vector index":
                session, owner_id = await open_write.enter_async_context(write())
                await add_item(session, owner_id, "Copper mug")
        assert max(steps) < 10  # it resumed where it was interrupted
        assert await database.fetchval("SELECT count(*) FROM search_models") == 1
    answer = await find(client, "teapot", mode="semantic", explain=True)
    assert answer["explanation"]["model"] == "words"
    assert titles(answer)[0] == "Teapot"
    assert (await client.get("/search/status")).json()["indexed"] == 73
    runtime_of(app).active = before  # like another process with an outdated cache
    similar = await client.get(f"/items/{answer['hits'][0]['item']['id']}/similar")
    assert similar.json()["total"] == 72
    runtime_of(app).active = before
    vector = {"vector": endpoint.embed("Teapot")}
    assert (await client.post("/search/vector", json=vector)).json()["total"] == 73
    await index()
    assert await database.fetchval(IS_CONSISTENT)
    assert titles(await find(client, "mug", mode="semantic"))[0] == "Copper mug"


async def test_a_reindex_fails_while_a_writer_does_not_end_and_can_be_run_again(
    endpoint: Endpoint,
    app: FastAPI,
    client: AsyncClient,
    index: Index,
    database: Database,
    writer: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await add(client, "Copper kettle")
    await embed_locally(app)
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute(INSERT_ITEM, "Iron pan")
    with monkeypatch.context() as impatient:
        impatient.setattr(documents, "WAIT_ATTEMPTS", 2)
        with pytest.raises(Unavailable, match="try again when it has ended"):
            await run_reindex(app, "german")
    assert (await client.get("/search/status")).json()["model"] == "all-MiniLM-L6-v2"
    await transaction.commit()
    await run_reindex(app, "german")
    assert (await client.get("/search/status")).json()["indexed"] == 2
    await index()
    assert await database.fetchval(IS_CONSISTENT)


async def run_reindex(app: FastAPI, language: str) -> None:
    async for _ in reindex(database_of(app), configured_embedder(app), language):
        pass


async def test_a_first_start_that_was_cut_off_is_made_again(
    endpoint: Endpoint,
    client: AsyncClient,
    index: Index,
    database: Database,
    writer: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await add(client, "Copper kettle")
    await writer.execute(INSERT_ITEM, "Iron pan")
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("UPDATE items SET price = 2")
    with monkeypatch.context() as impatient:
        impatient.setattr(documents, "WAIT_ATTEMPTS", 2)
        with pytest.raises(Unavailable):
            await index()
    await transaction.commit()
    await index()
    assert await database.fetchval(IS_CONSISTENT)


async def test_a_change_of_language_indexes_everything_again(
    app: FastAPI, client: AsyncClient, index: Index, database: Database, write: Write
) -> None:
    await add(client, "Die Häuser am See", "The houses by the lake")
    await index()
    assert "Die Häuser am See" not in titles(await find(client, "Hauses ", mode="lexical"))
    async with write() as (session, owner_id):
        await add_item(session, owner_id, "Zwei Häuser")  # indexed in the old language
        with recorded_queries() as sent:
            reindexing = asyncio.create_task(run_reindex(app, "german"))
            await wait_until_sent_twice(documents.HAS_OPEN_WRITERS, sent, reindexing)
    async with within(60, "the end of the reindex"):
        await reindexing
    await index()
    found = titles(await find(client, "Hauses ", mode="lexical"))
    assert sorted(found) == ["Die Häuser am See", "Zwei Häuser"]
    assert await database.fetchval(IS_CONSISTENT)


async def test_a_reindex_computes_all_weights_again_where_no_language_is_recorded(
    app: FastAPI, client: AsyncClient, index: Index, database: Database
) -> None:
    await add(client, "Copper kettle")
    await index()
    weights = await database.fetchval("SELECT weights::text FROM search_documents")
    await database.execute("UPDATE search_documents SET weights = '{1:1}/268435456'")
    await run_reindex(app, "english")
    assert await database.fetchval("SELECT weights::text FROM search_documents") != weights
    await database.execute("COMMENT ON TEXT SEARCH CONFIGURATION search IS NULL")
    await run_reindex(app, "english")
    assert await database.fetchval("SELECT weights::text FROM search_documents") == weights


async def test_what_is_written_while_all_is_indexed_again_is_not_overwritten(
    app: FastAPI,
    client: AsyncClient,
    index: Index,
    database: Database,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (_, pan) = await add(client, "Copper kettle", "Iron pan")
    await index()
    open_write = AsyncExitStack()
    wait_for_open_writers = documents.wait_for_open_writers

    async def wait_and_write(*arguments: Any) -> None:
        monkeypatch.undo()
        await wait_for_open_writers(*arguments)
        session, owner_id = await open_write.enter_async_context(write())
        await update_item(session, owner_id, UUID(pan["id"]), ItemUpdate(title="Tin cup"))

    monkeypatch.setattr(documents, "wait_for_open_writers", wait_and_write)
    with recorded_queries() as sent:
        reindexing = asyncio.create_task(run_reindex(app, "german"))
        await wait_until_sent_twice(documents.LOCK_ITEMS, sent, reindexing)
    await open_write.aclose()
    async with within(60, "the end of the reindex"):
        await reindexing
    await index()
    assert titles(await find(client, "cup", mode="lexical")) == ["Tin cup"]
    assert await database.fetchval(IS_CONSISTENT)
    assert await database.fetch(SELECT_WRONG_STATISTICS) == []


async def test_words_that_are_written_before_the_new_language_do_not_stay(
    app: FastAPI, client: AsyncClient, index: Index, writer: Database, database: Database
) -> None:
    await add(client, "Copper kettle")
    await index()
    await writer.execute("BEGIN")
    await writer.execute(
        "INSERT INTO search_words (owner_id, word, lexeme) SELECT owner_id, 'pans', 'pan' "
        "FROM search_owners"
    )
    await finish_while_writing(app, "german", writer)
    assert await database.fetchval("SELECT count(*) FROM search_words WHERE word = 'pans'") == 0


async def test_what_is_queued_for_a_model_while_it_is_deleted_does_not_stay(
    app: FastAPI, client: AsyncClient, index: Index, writer: Database, database: Database
) -> None:
    await add(client, "Copper kettle")
    await index()
    await writer.execute("BEGIN")
    await writer.execute(
        "INSERT INTO search_queue (owner_id, item_id, model_id) "
        "SELECT owner_id, item_id, 999 FROM search_documents"
    )
    await finish_while_writing(app, "english", writer)
    assert await database.fetchval("SELECT count(*) FROM search_queue") == 0


async def finish_while_writing(app: FastAPI, language: str, writer: Database) -> None:
    """Reindexes, and commits what the writer has open once the reindex waits for it."""
    with recorded_queries() as sent:
        reindexing = asyncio.create_task(run_reindex(app, language))
        await wait_until_sent_twice(documents.HAS_OPEN_WRITERS, sent, reindexing)
    await writer.execute("COMMIT")
    async with within(60, "the end of the reindex"):
        await reindexing


async def test_a_role_that_may_build_no_index_is_told_at_once(
    app: FastAPI, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    await index()
    monkeypatch.setattr(reindexing, "MAY_BUILD_INDEX", "SELECT false")
    with pytest.raises(Unavailable, match="reindex as the owner of the tables"):
        await run_reindex(app, "english")


async def test_a_reindex_asks_no_replica(
    app: FastAPI, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(client, "Copper kettle")

    def read(*_: object) -> NoReturn:
        raise AssertionError("a replica does not know who writes, and lags")

    monkeypatch.setattr(type(database_of(app)), "read", read)
    async with within(60, "the end of the reindex"):
        await run_reindex(app, "german")


async def test_a_reindex_tells_what_the_model_did_not_embed_and_tries_it_again(
    endpoint: Endpoint,
    client: AsyncClient,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embeddings, "MAX_EMBEDDING_ATTEMPTS", 1)
    endpoint.poison = "arsenic"
    await add(client, "Jar of arsenic", "Copper kettle")

    async def run() -> str:
        async with within(60, "the end of the reindex"):
            result = await command("reindex")
        assert result.exit_code == 0, result.output
        return result.output

    assert "did not embed them: 1 items" in await run()
    assert (await client.get("/search/status")).json()["parked"] == 1
    endpoint.poison = None
    assert "did not embed" not in await run()
    assert (await client.get("/search/status")).json()["indexed"] == 2


async def test_a_pooler_is_sent_nothing_that_outlasts_a_transaction(
    app: FastAPI, client: AsyncClient
) -> None:
    await add(client, "Kettle")
    with recorded_queries() as sent:
        await run_reindex(app, "english")
    assert sent
    assert not [each for each in sent if each.startswith(("SET", "RESET")) or "CONCURR" in each]
