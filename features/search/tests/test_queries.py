"""Limits the SQL statements of each endpoint to the table in README.md, and the function calls of a
search."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.search.tests.conftest import Index
from tests.kit import assert_max_calls, assert_query_budgets

README = Path(__file__).parents[1] / "README.md"


async def test_each_endpoint_keeps_its_budget_of_queries(client: AsyncClient, index: Index) -> None:
    for title in ("Enamel mug", "Kettle"):
        made = await client.post("/items", json={"title": title, "price": 12.5})
    await index()
    vector = {"vector": [0.1] * 384}
    await assert_query_budgets(
        README,
        {
            "GET /search": client.get("/search", params={"q": "mug"}),
            "POST /search/vector": client.post("/search/vector", json=vector),
            "GET /items/{item_id}/similar": client.get(f"{made.headers['location']}/similar"),
            "GET /search/status": client.get("/search/status"),
        },
    )


@pytest.mark.one_server
async def test_a_search_calls_few_functions(app: FastAPI, client: AsyncClient) -> None:
    await client.post("/items", json={"title": "Enamel mug", "price": 12.5})
    await assert_max_calls(client, app, "/search?q=mug&mode=lexical", most=5.4)
