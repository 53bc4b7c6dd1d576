"""A request with an `Idempotency-Key` takes effect once, even if it is sent several times."""

import asyncio

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response

from shared.settings import Settings
from shared.web.idempotency import delete_expired_keys
from tests.kit import eventually, run_until_idle, within

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
COPY_KEYS = """
INSERT INTO idempotency_keys (owner_id, key, fingerprint, status, headers, body, expires_at)
SELECT owner_id, key || number, fingerprint, status, headers, body, expires_at
FROM idempotency_keys, generate_series(1, 2500) AS number
"""
SELECT_WAITING_FOR_ITEMS = """
SELECT FROM pg_locks WHERE NOT granted AND relation = 'items'::regclass
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
MUG = {"title": "Enamel mug", "price": 12.5}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Raises the lock timeout, as tests make requests wait for locks."""
    return settings.model_copy(update={"database_lock_timeout": 30.0})


async def create_item(
    client: AsyncClient, key: dict[str, str] = KEY, **changes: object
) -> Response:
    return await client.post("/items", json=MUG | changes, headers=key)


async def count_items(client: AsyncClient) -> int:
    return int((await client.get("/items")).json()["total"])


async def expire_keys(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE idempotency_keys SET expires_at = now() - interval '1 second'")
    await connection.close()


async def test_the_same_request_is_answered_the_same(client: AsyncClient) -> None:
    first, second = await create_item(client), await create_item(client)
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.content == first.content
    for name in ("content-type", "etag", "location"):
        assert second.headers[name] == first.headers[name]
    assert second.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert await count_items(client) == 1


async def test_an_answer_is_replayed_as_it_was(client: AsyncClient) -> None:
    first = await create_item(client)
    await client.patch(first.headers["location"], json={"price": 9.99})
    assert (await create_item(client)).content == first.content


async def test_another_request_cannot_have_the_key(client: AsyncClient) -> None:
    await create_item(client)
    refused = await create_item(client, price=13)
    assert refused.status_code == 422
    assert "different request" in refused.json()["detail"]
    assert await count_items(client) == 1


async def test_each_account_has_its_own_keys(
    client: AsyncClient, other_client: AsyncClient
) -> None:
    mine, others = await create_item(client), await create_item(other_client)
    assert (mine.status_code, others.status_code) == (201, 201)
    assert mine.json()["id"] != others.json()["id"]
    assert await count_items(client) == await count_items(other_client) == 1


async def test_without_a_key_each_request_takes_effect(client: AsyncClient) -> None:
    assert (await create_item(client, {})).status_code == 201
    assert (await create_item(client, {})).status_code == 201
    assert await count_items(client) == 2


async def test_an_expired_key_can_be_used_again(client: AsyncClient, database_url: str) -> None:
    await create_item(client)
    await expire_keys(database_url)
    again = await create_item(client, price=13)
    assert again.status_code == 201
    assert "idempotency-replayed" not in again.headers
    assert (await create_item(client, price=13)).headers["idempotency-replayed"] == "true"
    assert await count_items(client) == 2


async def test_expired_keys_are_deleted(
    app: FastAPI, client: AsyncClient, database_url: str
) -> None:
    await create_item(client, {"Idempotency-Key": "old"})
    connection = await asyncpg.connect(database_url)
    await connection.execute("ANALYZE idempotency_keys")  # statistics from before a burst
    await connection.execute(COPY_KEYS)
    await expire_keys(database_url)
    await create_item(client, {"Idempotency-Key": "new"})
    assert await delete_expired_keys.run(app) == 1_000, "in batches, each in a moment"
    assert await run_until_idle(app, delete_expired_keys) == 1_501
    assert await connection.fetchval("SELECT array_agg(key) FROM idempotency_keys") == ["new"]
    await connection.close()


async def test_a_request_that_fails_keeps_nothing(client: AsyncClient) -> None:
    taken = await create_item(client, {}, external_id="MUG-1")
    refused = await create_item(client, external_id="MUG-1")
    assert refused.status_code == 409
    await client.delete(taken.headers["location"])
    again = await create_item(client, external_id="MUG-1")
    assert again.status_code == 201
    assert "idempotency-replayed" not in again.headers


async def test_a_request_in_progress_is_not_repeated(
    client: AsyncClient, other_client: AsyncClient, database_url: str
) -> None:
    holder, observer = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("LOCK TABLE items IN SHARE MODE")  # blocks inserts
        first = asyncio.create_task(create_item(client))

        async def first_waits() -> bool:
            assert not first.done(), f"it was answered {first.result().status_code} at once"
            return bool(await observer.fetch(SELECT_WAITING_FOR_ITEMS))

        await eventually(first_waits, "a request that waits to insert", 30)
        second = await create_item(client)
        assert second.status_code == 409
        assert "still being worked on" in second.json()["detail"]
    async with within(30, "the answer of the first request"):
        assert (await first).status_code == 201
    assert (await create_item(client)).headers["idempotency-replayed"] == "true"
    assert await count_items(client) == 1
    await holder.close()
    await observer.close()


async def test_of_ten_concurrent_requests_one_takes_effect(client: AsyncClient) -> None:
    for round_ in range(1, 101):
        key = {"Idempotency-Key": f"round-{round_}"}
        answers = await asyncio.gather(*(create_item(client, key) for _ in range(10)))
        created = [answer for answer in answers if answer.status_code == 201]
        assert {answer.status_code for answer in answers} <= {201, 409}
        assert len({answer.json()["id"] for answer in created}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in created) == 1
        assert await count_items(client) == round_
