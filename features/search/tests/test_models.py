"""Remote models: failures of the endpoint, and texts that it fails to embed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import stamina
from fastapi import FastAPI
from httpx import AsyncClient, Response
from pydantic import ValidationError
from time_machine import TimeMachineFixture

from features.items import ItemUpdate, update_item
from features.search.embedding import EmbeddingUnavailable, WrongDimension
from features.search.embedding import remote as remote_models
from features.search.embedding.embedders import QUERIES_PER_OWNER, Embedders
from features.search.embedding.remote import retry_after
from features.search.indexing import sweep
from features.search.runtime import check_model
from features.search.settings import SearchSettings
from features.search.tasks import embedding_task, statistics_task
from features.search.tests.conftest import Index, Write
from features.search.tests.fake_endpoint import Endpoint, running_endpoint
from features.search.tests.test_indexing import (
    IS_CONSISTENT,
    SELECT_WRONG_STATISTICS,
    Database,
    add,
    database,
)
from features.search.tests.test_search import find, titles
from shared.cache import open_cache
from shared.db import database_of
from shared.settings import ConfigurationError
from shared.slots import current_holder
from tests.kit import eventually, run_until_idle, within

__all__ = ["database"]

OWNER, OTHER_OWNER = uuid4(), uuid4()


@pytest.fixture
def timeouts() -> tuple[str, str]:
    """The timeouts of documents and of queries, in seconds."""
    return "30", "30"


@pytest.fixture
async def endpoint(
    monkeypatch: pytest.MonkeyPatch, timeouts: tuple[str, str]
) -> AsyncIterator[Endpoint]:
    """Runs an endpoint, and points the settings to it."""
    async with running_endpoint() as running:
        for name, value in {
            "PROVIDER": "openai",
            "URL": running.url,
            "MODEL": "words",
            "DIM": str(running.dimension),
            "API_KEY": "secret",
            "TIMEOUT": timeouts[0],
            "QUERY_TIMEOUT": timeouts[1],
        }.items():
            monkeypatch.setenv(f"APP_EMBEDDING_{name}", value)
        yield running


@pytest.fixture(autouse=True)
def quick_retries() -> Any:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture
async def remote(endpoint: Endpoint) -> AsyncIterator[Embedders]:
    embedders = Embedders(SearchSettings(), open_cache(None))
    yield embedders
    await embedders.close()


async def test_an_openai_compatible_endpoint_takes_the_models_place(
    endpoint: Endpoint, client: AsyncClient, index: Index, database: Database
) -> None:
    await add(client, "Copper kettle", "Iron pan")
    await index()
    assert await database.fetchval(IS_CONSISTENT)
    status = (await client.get("/search/status")).json()
    assert (status["model"], status["dimension"], status["indexed"]) == ("words", 64, 2)
    assert titles(await find(client, "kettle", mode="semantic"))[0] == "Copper kettle"
    vector = {"vector": endpoint.embed("Iron pan")}
    hits = (await client.post("/search/vector", json=vector)).json()["hits"]
    assert hits[0]["item"]["title"] == "Iron pan"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)


async def test_a_query_is_embedded_once(
    endpoint: Endpoint, client: AsyncClient, index: Index
) -> None:
    await index()
    endpoint.requests.clear()
    for _ in range(3):
        await find(client, "kettle")
    assert endpoint.requests == [["kettle"]]


async def test_no_account_is_told_sooner_what_another_has_searched_for(
    endpoint: Endpoint, client: AsyncClient, other_client: AsyncClient, index: Index
) -> None:
    await index()
    endpoint.requests.clear()
    await find(client, "kettle")
    await find(other_client, "kettle")
    assert endpoint.requests == [["kettle"]] * 2
    answering = asyncio.Event()
    endpoint.meanwhile = answering.wait
    waiting = [asyncio.create_task(find(each, "teapot")) for each in (client, other_client)]
    await eventually(lambda: len(endpoint.requests) == 4, "a request for each account", 30)
    answering.set()
    await asyncio.gather(*waiting)


async def test_scores_are_from_0_to_1_whatever_the_cosines(
    endpoint: Endpoint, client: AsyncClient, index: Index
) -> None:
    await add(client, "Copper kettle", "Iron pan")
    await index()
    for word in ("copper", "tin", "oak", "fir", "elm", "ash", "yew", "box", "bay", "fig"):
        answer = await find(client, word)  # for half of these words the best cosine is below 0
        assert len(answer["hits"]) == 2
        assert all(0 <= hit["score"] <= 1 for hit in answer["hits"]), answer


async def test_a_busy_endpoint_is_asked_again(endpoint: Endpoint, remote: Embedders) -> None:
    endpoint.failures = [(429, {"Retry-After": "0"}), (503, {})]
    embedder = remote.get(remote.configured)
    assert embedder
    assert len(await embedder.embed_documents(["kettle"] * 200)) == 200
    assert sorted(map(len, endpoint.requests)) == [8, 96, 96]


@pytest.mark.parametrize("status", [401, 404, 429, 500])
async def test_an_endpoint_that_does_not_serve_is_unavailable(
    endpoint: Endpoint, remote: Embedders, status: int
) -> None:
    endpoint.failures = [(status, {})] * 3
    with pytest.raises(EmbeddingUnavailable, match=f"answered {status}"):
        await remote.embed_query(OWNER, remote.configured, "kettle")


async def test_a_wrong_dimension_is_named(endpoint: Endpoint, remote: Embedders) -> None:
    endpoint.dimension = 32
    with pytest.raises(
        WrongDimension, match=r"APP_EMBEDDING_DIM: words gives .* 32 numbers, not 64"
    ):
        await remote.embed_query(OWNER, remote.configured, "kettle")
    with pytest.raises(ConfigurationError, match="APP_EMBEDDING_DIM"):
        await check_model(remote)


async def test_an_endpoint_that_is_down_does_not_stop_the_start(
    endpoint: Endpoint, remote: Embedders
) -> None:
    endpoint.failures = [(500, {})] * 3
    await check_model(remote)


async def test_weights_that_were_not_tried_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.onnx"
    for content, message in ((None, "No such file"), (b"weights", "not the expected SHA-256")):
        if content:
            weights.write_bytes(content)
        settings = SearchSettings(embedding_provider="local", embedding_model_path=weights)
        with pytest.raises(ConfigurationError, match=message):
            await check_model(Embedders(settings, open_cache(None)))


async def test_without_the_model_words_still_find(
    endpoint: Endpoint, client: AsyncClient, index: Index
) -> None:
    await add(client, "Copper kettle")
    await index()
    endpoint.failures = [(500, {})] * 100
    answer = await find(client, "kettle")
    assert titles(answer) == ["Copper kettle"]
    assert (answer["degraded"], answer["mode"]) == (True, "hybrid")
    refused = await client.get("/search", params={"q": "pot", "mode": "semantic"})
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert len(endpoint.failures) > 90  # the circuit breaker skips it for a while
    assert (await find(client, "kettle", mode="lexical"))["degraded"] is False


async def test_no_connection_waits_for_the_model(
    endpoint: Endpoint, app: FastAPI, client: AsyncClient, index: Index
) -> None:
    await add(client, "Copper kettle")
    await index()
    (waiting,) = await add(client, "Iron pan")
    await find(client, "kettle")
    endpoint.requests.clear()
    answering = asyncio.Event()
    endpoint.meanwhile = answering.wait
    asked = [asyncio.create_task(find(client, f"kettle {n % 6}")) for n in range(24)]
    similar = asyncio.create_task(client.get(f"/items/{waiting['id']}/similar"))
    await eventually(lambda: len(endpoint.requests) >= 7, "the last request to the model", 60)
    assert database_of(app).primary.in_use == 0
    assert (await client.get(f"/items/{waiting['id']}")).status_code == 200
    answering.set()
    async with within(60, "the answer of each request"):
        answers = await asyncio.gather(*asked)
        assert (await similar).status_code == 200
    assert not any(answer["degraded"] for answer in answers)
    assert len(endpoint.requests) == 7  # equal queries share one request


async def test_the_queries_of_one_owner_leave_the_model_to_others(
    endpoint: Endpoint, remote: Embedders
) -> None:
    answering = asyncio.Event()
    endpoint.meanwhile = answering.wait
    embed = partial(remote.embed_query, model=remote.configured)
    asked = [asyncio.create_task(embed(OWNER, text=f"kettle {n}")) for n in range(50)]
    await eventually(lambda: len(endpoint.requests) >= QUERIES_PER_OWNER, "the first requests")
    asked.append(asyncio.create_task(embed(OTHER_OWNER, text="teapot")))
    await eventually(lambda: ["teapot"] in endpoint.requests, "the other owner's request")
    assert len(endpoint.requests) == QUERIES_PER_OWNER + 1
    answering.set()
    async with within(30, "the answer of each"):
        await asyncio.gather(*asked)


async def test_queries_of_one_account_leave_the_endpoint_to_other_accounts(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A noisy account has two of three slots, however many requests it sends."""
    monkeypatch.setattr(remote_models, "QUERY_SLOTS", 3)
    embedders, gate = Embedders(SearchSettings(), open_cache(None)), asyncio.Event()
    endpoint.meanwhile = gate.wait

    async def embed(account: UUID, text: str) -> None:
        current_holder.set(str(account))
        await embedders.embed_query(account, embedders.configured, text)

    async with within(60, "all vectors"), asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(embed(OWNER, f"noisy {number}"))
        await eventually(lambda: len(endpoint.requests) == 2, "the noisy account's share")
        group.create_task(embed(OTHER_OWNER, "quiet"))
        await eventually(lambda: ["quiet"] in endpoint.requests, "the quiet account's query")
        assert len(endpoint.requests) == 3
        gate.set()
    await embedders.close()


@pytest.mark.parametrize("timeouts", [("30", "0.1")])
async def test_a_hanging_model_is_not_waited_for(endpoint: Endpoint, remote: Embedders) -> None:
    answering = asyncio.Event()
    endpoint.meanwhile = answering.wait
    with pytest.raises(EmbeddingUnavailable, match="did not answer in time"):
        await remote.embed_query(OWNER, remote.configured, "kettle")
    answering.set()
    assert len(endpoint.requests) <= 1


async def test_a_query_that_the_model_fails_on_fails_alone(
    endpoint: Endpoint, remote: Embedders
) -> None:
    embed = partial(remote.embed_query, OWNER, remote.configured)
    endpoint.failures = [(500, {})]
    for _ in range(3):
        with pytest.raises(EmbeddingUnavailable):
            await embed("poison")
    assert len(await embed("kettle")) == 64
    endpoint.failures = [(500, {}), (500, {})]
    for text in ("one", "two", "three", "kettle 2"):  # the circuit breaker opens after two
        with pytest.raises(EmbeddingUnavailable):
            await embed(text)
    assert endpoint.requests == [["kettle"]]


async def test_the_queries_of_one_owner_that_fail_degrade_no_other_owner(
    endpoint: Endpoint, remote: Embedders
) -> None:
    endpoint.failures = [(500, {})] * 2
    for text in ("one", "two", "three"):
        with pytest.raises(EmbeddingUnavailable):
            await remote.embed_query(OWNER, remote.configured, text)
    assert endpoint.requests == []
    endpoint.failures = [(500, {})]
    with pytest.raises(EmbeddingUnavailable, match="answered 500"):
        await remote.embed_query(OTHER_OWNER, remote.configured, "one")
    with pytest.raises(EmbeddingUnavailable, match="a moment ago"):
        await remote.embed_query(uuid4(), remote.configured, "kettle")
    assert endpoint.requests == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("1.5", 1.5),
        ("Wed, 21 Oct 2026 07:28:20 GMT", 20),
        ("Wed, 21 Oct 2026 07:20:00 GMT", 0),
        ("900", 30),
        ("soon", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after_is_read_in_each_of_its_forms(
    time_machine: TimeMachineFixture, value: str, seconds: float | None
) -> None:
    time_machine.move_to(datetime(2026, 10, 21, 7, 28, tzinfo=UTC), tick=False)
    assert retry_after(Response(429, headers={"Retry-After": value})) == seconds


@pytest.mark.parametrize("status", [400, 500])
async def test_while_the_model_serves_nobody_what_waits_is_left_alone(
    endpoint: Endpoint, client: AsyncClient, index: Index, database: Database, status: int
) -> None:
    await index()
    await add(client, "Copper kettle", "Iron pan")
    endpoint.failures = [(status, {})] * 100
    for _ in range(6):
        await index()
    assert (await client.get("/search/status")).json()["pending"] == 2
    assert await database.fetchval("SELECT count(*) FROM search_queue WHERE attempts > 0") == 0
    endpoint.failures.clear()
    await index()
    assert await database.fetchval(IS_CONSISTENT)


@pytest.mark.parametrize(
    ("reaction", "timeouts", "error"),
    [
        ("400", ("30", "30"), "cannot embed arsenic"),
        ("500", ("30", "30"), "cannot embed arsenic"),
        ("null", ("30", "30"), "not 64"),
        pytest.param("hang", ("2", "30"), "ReadTimeout", marks=pytest.mark.verify),
    ],
)
async def test_a_poisoned_text_is_parked_and_blocks_nothing(
    endpoint: Endpoint,
    app: FastAPI,
    client: AsyncClient,
    index: Index,
    database: Database,
    reaction: str,
    error: str,
) -> None:
    endpoint.poison, endpoint.reaction = "arsenic", reaction
    (item, *_) = await add(client, "Jar of arsenic", *(f"Kettle {n}" for n in range(20)))
    await database.execute(
        "INSERT INTO items (id, owner_id, title, price) "
        "SELECT gen_random_uuid(), owner_id, 'Pot ' || n, 1 "
        "FROM (SELECT owner_id FROM items LIMIT 1) AS items, generate_series(1, 80) AS n"
    )
    await sweep(database_of(app))
    with stamina.set_testing(True, attempts=1):
        await index()
        assert await database.fetchval("SELECT array_agg(item_id::text) FROM search_queue") == [
            item["id"]
        ]
        await database.execute("UPDATE search_queue SET attempts = 4, next_attempt_at = now()")
        await index()
    status = (await client.get("/search/status")).json()
    assert (status["indexed"], status["pending"], status["parked"]) == (100, 0, 1)
    (parked,) = status["parked_items"]
    assert (parked["item_id"], parked["attempts"]) == (item["id"], 5)
    assert error in parked["error"]
    assert titles(await find(client, "arsenic", mode="lexical")) == ["Jar of arsenic"]

    await client.patch(f"/items/{item['id']}", json={"title": "Jar of sugar"})
    await index()
    assert await database.fetchval(IS_CONSISTENT)


async def test_what_failed_before_is_tried_again_alone(
    endpoint: Endpoint, client: AsyncClient, index: Index, database: Database
) -> None:
    endpoint.poison = "arsenic"
    await add(client, "Jar of arsenic", "Box of arsenic")
    await index()
    await add(client, "Copper kettle", "Iron pan")
    await database.execute("UPDATE search_queue SET next_attempt_at = now()")
    endpoint.requests.clear()
    await index()
    assert sorted(map(len, endpoint.requests)) == [1, 1, 1, 1, 2]  # one probe per refusal


async def test_many_workers_share_the_queue(
    endpoint: Endpoint, app: FastAPI, client: AsyncClient, index: Index, database: Database
) -> None:
    await add(client, "Copper kettle")
    await index()
    await database.execute(
        "INSERT INTO items (id, owner_id, title, price) "
        "SELECT gen_random_uuid(), owner_id, 'Pot ' || n, 1 "
        "FROM items, generate_series(1, 256) AS n"
    )
    await sweep(database_of(app))
    await asyncio.gather(*(run_until_idle(app, statistics_task) for _ in range(4)))
    all_at_work = asyncio.Barrier(4)
    endpoint.meanwhile = all_at_work.wait  # answers only when all four have a batch
    async with within(60, "the end of four workers"):
        done = await asyncio.gather(*(run_until_idle(app, embedding_task) for _ in range(4)))
        assert done == [64] * 4
    assert await database.fetchval(IS_CONSISTENT)
    assert await database.fetch(SELECT_WRONG_STATISTICS) == []


@pytest.mark.parametrize("committed", [True, False])
async def test_a_corrected_text_waits_for_no_embedder_and_is_not_parked_for_the_old_one(
    endpoint: Endpoint,
    client: AsyncClient,
    index: Index,
    database: Database,
    write: Write,
    committed: bool,
) -> None:
    endpoint.poison = "arsenic"
    (jar,) = await add(client, "Jar of arsenic")
    await index()
    await database.execute("UPDATE search_queue SET attempts = 4, next_attempt_at = now()")
    open_write = AsyncExitStack()

    async def correct() -> None:
        endpoint.meanwhile = None
        async with within(2, "a write while the item is embedded"):
            session, owner_id = await open_write.enter_async_context(write())
            sugar = ItemUpdate(title="Jar of sugar")
            await update_item(session, owner_id, UUID(jar["id"]), sugar)
        if committed:
            await open_write.aclose()

    endpoint.meanwhile = correct
    await index()
    await open_write.aclose()
    assert (await client.get("/search/status")).json()["parked"] == 0
    await index()
    assert await database.fetchval(IS_CONSISTENT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_provider": "openai"}, "APP_EMBEDDING_URL is required"),
        ({"embedding_provider": "magic"}, "'local' or 'openai'"),
        ({"embedding_dim": 5000}, "less than or equal to 4000"),
        ({"embedding_threads": 0}, "greater than or equal to 1"),
        ({"search_language": "english'; --"}, "match pattern"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchSettings(**settings)


async def test_a_cache_that_does_not_answer_fails_no_query(endpoint: Endpoint) -> None:
    embedders = Embedders(SearchSettings(), open_cache("redis://127.0.0.1:9/0"))
    for _ in range(2):
        assert len(await embedders.embed_query(OWNER, embedders.configured, "kettle")) == 64
    assert endpoint.requests == [["kettle"], ["kettle"]]
    await embedders.close()
