"""An account may have so many items, and so much text in them, and no more."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.items import quota as items_quota
from features.items.quota import Quota
from features.items.settings import ItemsSettings
from features.items.tests.test_import import CSV, NO_ROWS, json_lines, report, row, send, titles
from tests.app_helpers import assert_problem


@pytest.fixture
def limits() -> dict[str, int]:
    return {"max_items": 5}


@pytest.fixture(autouse=True)
def quota(app: FastAPI, limits: dict[str, int]) -> Quota:
    app.state.resources[Quota] = quota = Quota(ItemsSettings().model_copy(update=limits))
    return quota


async def usage(client: AsyncClient) -> dict[str, Any]:
    answer = await client.get("/items/usage")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def test_an_account_has_no_more_items_than_it_may(
    client: AsyncClient, other_client: AsyncClient
) -> None:
    for number in range(5):
        made = await client.post("/items", json={"title": f"Mug {number}", "price": 1})
        assert made.status_code == 201
    for _ in range(3):
        refused = await client.post("/items", json={"title": "Mug", "price": 1})
        assert assert_problem(refused, 403)["detail"] == "An account may have 5 items"
    assert len(await titles(client)) == 5
    assert await usage(client) == {
        "items": 5,
        "max_items": 5,
        "text_bytes": 25,
        "max_text_bytes": 1_000_000_000,
    }
    changed = await client.patch(made.headers["location"], json={"title": "Cup"})
    assert changed.status_code == 200
    await client.delete(made.headers["location"])
    assert (await usage(client))["items"] == 4
    assert (await client.post("/items", json={"title": "Mug", "price": 1})).status_code == 201
    assert (await usage(other_client))["items"] == 0


async def test_concurrent_writes_have_one_limit(client: AsyncClient) -> None:
    posts = (client.post("/items", json={"title": "Mug", "price": 1}) for _ in range(12))
    statuses = [answer.status_code for answer in await asyncio.gather(*posts)]
    assert sorted(statuses) == [201] * 5 + [403] * 7
    assert len(await titles(client)) == 5


async def test_an_import_that_would_go_past_the_limit_changes_nothing(client: AsyncClient) -> None:
    rows = [row(key) for key in range(5)]
    refused = await send(client, json_lines(*rows, row(6)))
    assert assert_problem(refused, 403)["detail"] == "An account may have 5 items"
    assert await titles(client) == []
    assert await report(send(client, json_lines(*rows))) == NO_ROWS | {"created": 5}
    assert await report(send(client, json_lines(*rows))) == NO_ROWS | {"unchanged": 5}
    assert (await send(client, b"title,price\nMug,1\n", CSV)).status_code == 403
    changed = await report(send(client, json_lines(row(1, 9))))
    assert changed == NO_ROWS | {"updated": 1}


@pytest.mark.parametrize("limits", [{"max_items_text": 1_000}])
async def test_an_account_has_no_more_text_than_it_may(client: AsyncClient) -> None:
    made = await client.post("/items", json={"title": "Mug", "price": 1, "description": "ä" * 490})
    assert (await usage(client))["text_bytes"] == 983
    long = "An account may have 1,000 bytes of text in its items"
    refused = await client.post("/items", json={"title": "x" * 18, "price": 1})
    assert assert_problem(refused, 403)["detail"] == long
    url = made.headers["location"]
    assert_problem(await client.patch(url, json={"title": "x" * 21}), 403)
    assert_problem(await send(client, json_lines(row(1, description="x" * 100))), 403)
    assert (await client.patch(url, json={"price": 2})).status_code == 200
    assert (await client.patch(url, json={"description": "ä" * 480})).status_code == 200
    assert (await client.patch(url, json={"title": "x" * 21})).status_code == 200
    assert await usage(client) | {"items": 1, "text_bytes": 981} == await usage(client)


@pytest.mark.parametrize("limits", [{"max_items": 20_000}])
async def test_each_process_goes_past_the_limit_by_a_thousandth(
    app: FastAPI, client: AsyncClient, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has counted when the account was empty, and has no time to count again."""
    monkeypatch.setattr(items_quota, "SLOW_COUNT_SECONDS", 0.0)
    monkeypatch.setattr(items_quota, "PAUSE_FACTOR", 1e9)
    settings = ItemsSettings().model_copy(update=limits)
    processes = [Quota(settings) for _ in range(3)]

    async def add(process: Quota) -> bool:
        app.state.resources[Quota] = process
        made = await client.post("/items", json={"title": "Mug", "price": 1})
        return made.status_code == 201

    assert all([await add(process) for process in processes])
    await report(send(client, json_lines(*(row(key) for key in range(19_990)))))
    for process in processes:
        added = 0
        while await add(process):
            added += 1
            assert added <= 30
    assert 20_000 <= (await usage(client))["items"] <= 20_000 + len(processes) * 20


@pytest.mark.parametrize("limits", [{"max_items": 100_000}])
async def test_items_are_counted_once_in_a_while(
    client: AsyncClient, quota: Quota, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = 0
    count = quota._count

    async def counted(*given: Any) -> None:
        nonlocal counts
        counts += 1
        await count(*given)

    monkeypatch.setattr(quota, "_count", counted)
    for _ in range(20):
        await client.post("/items", json={"title": "Mug", "price": 1})
    assert counts == 1
    quota.max_items = 10_000
    await report(send(client, json_lines(*(row(key) for key in range(9_900)))))
    assert counts == 2
    for _ in range(3):  # near the limit each is
        await client.post("/items", json={"title": "Mug", "price": 1})
    assert counts == 5
