"""The maximum number of statements of each endpoint, and other resources of a request."""

from fastapi import FastAPI
from httpx import AsyncClient

from features.items.schemas import ItemCreate
from tests.kit import assert_max_calls, max_queries, payload_for


async def test_each_endpoint_keeps_its_query_budget(client: AsyncClient) -> None:
    for _ in range(3):
        url = (await client.post("/items", json=payload_for(ItemCreate))).headers["location"]
    with max_queries(1):  # the page and the total
        await client.get("/items")
    with max_queries(2):  # an empty page has no row to carry the total
        await client.get("/items", params={"skip": 10})
    with max_queries(1):
        await client.get("/items", params={"total": "false"})
    with max_queries(1):
        await client.post("/items", json=payload_for(ItemCreate))
    with max_queries(4):  # also locks the key, looks for a stored response, and stores it
        await client.post(
            "/items", json=payload_for(ItemCreate), headers={"Idempotency-Key": "once"}
        )
    with max_queries(2):
        await client.post(
            "/items", json=payload_for(ItemCreate), headers={"Idempotency-Key": "once"}
        )
    with max_queries(1):
        await client.get(url)
    with max_queries(2):  # the lock, and the update
        await client.patch(url, json={"title": "Changed"})
    with max_queries(2):
        await client.delete(url)
    with max_queries(1):
        await client.get("/items/export")


async def test_an_import_takes_the_same_queries_whatever_its_length(client: AsyncClient) -> None:
    headers = {"Content-Type": "application/jsonl"}
    for rows in (1, 5_000):
        lines = "".join(f'{{"title": "Mug {n}", "price": 1}}\n' for n in range(rows))
        with max_queries(9 if rows > 1 else 10):  # the first of an account counts its items
            answer = await client.post("/items/import", content=lines, headers=headers)
        assert answer.json()["created"] == rows


async def test_answers_stay_small(client: AsyncClient) -> None:
    for number in range(20):
        made = await client.post("/items", json={"title": f"Mug {number:02}", "price": 9.99})
    assert len((await client.get(made.headers["location"])).content) < 230
    assert len((await client.get("/items")).content) < 20 * 230 + 100


async def test_requests_call_few_functions(app: FastAPI, client: AsyncClient) -> None:
    made = await client.post("/items", json={"title": "Enamel mug", "price": 12.5})
    await assert_max_calls(client, app, made.headers["location"], most=5.3)
    await assert_max_calls(client, app, "/items", most=4.4)
