"""Create, get, update, delete: one item over HTTP."""

from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import orjson
import pytest
from httpx import AsyncClient

MUG = {"title": "Enamel mug", "price": 12.5, "description": "Blue rim", "external_id": "MUG-1"}


async def test_an_item_is_created_as_the_guideline_says(client: AsyncClient) -> None:
    response = await client.post("/items", json={"title": "Test Item", "price": 19.99})
    assert response.status_code == 201
    data = response.json()
    assert data["title"] == "Test Item"
    assert data["price"] == 19.99


async def test_a_created_item_is_at_its_location_with_its_tag(client: AsyncClient) -> None:
    created = await client.post("/items", json=MUG)
    assert created.headers["location"] == f"/items/{created.json()['id']}"
    found = await client.get(created.headers["location"])
    assert found.json() == created.json()
    assert found.json() | MUG == found.json()
    assert found.headers["etag"] == created.headers["etag"]


BAD_FIELDS: list[tuple[dict[str, object], str, str]] = [
    ({"title": ""}, "/title", "at least 1 character"),
    ({"title": "x" * 501}, "/title", "at most 500 characters"),
    ({"title": "nul \x00 inside"}, "/title", "NUL"),
    ({"title": None}, "/title", "valid string"),
    ({"price": 0}, "/price", "greater than 0"),
    ({"price": -1}, "/price", "greater than 0"),
    ({"price": 0.001}, "/price", "no more than 2 decimal places"),
    ({"price": 1e11}, "/price", "less than or equal to"),
    ({"price": "19.99"}, "/price", "should be a number"),
    ({"price": True}, "/price", "should be a number"),
    ({"description": "x" * 10_001}, "/description", "at most 10000 characters"),
    ({"external_id": ""}, "/external_id", "at least 1 character"),
    ({"owner_id": str(uuid4())}, "/owner_id", "not permitted"),
]


async def test_a_bad_field_is_named(client: AsyncClient, subtests: pytest.Subtests) -> None:
    for change, pointer, detail in BAD_FIELDS:
        with subtests.test(change=change, pointer=pointer, detail=detail):
            response = await client.post("/items", json=MUG | change)
            assert response.status_code == 422
            (error,) = response.json()["errors"]
            assert error["pointer"] == pointer
            assert error["location"] == "body"
            assert detail in error["detail"]


@pytest.mark.parametrize("price", ["NaN", "Infinity", "-Infinity"])
async def test_a_price_that_is_no_number_is_refused(client: AsyncClient, price: str) -> None:
    body = f'{{"title": "Mug", "price": {price}}}'
    response = await client.post(
        "/items", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/price"


async def test_prices_are_exact(client: AsyncClient) -> None:
    for price in (0.01, 0.07, 1.1, 19.99, 1234567.89, 9999999999.99):
        created = await client.post("/items", json={"title": "Mug", "price": price})
        assert created.status_code == 201, created.text
        assert f'"price":{price}' in created.text


async def test_a_taken_external_id_is_a_conflict(
    client: AsyncClient, other_client: AsyncClient
) -> None:
    assert (await client.post("/items", json=MUG)).status_code == 201
    again = await client.post("/items", json=MUG)
    assert again.status_code == 409
    assert again.json()["detail"] == "You already have an item with this external_id"
    assert (await other_client.post("/items", json=MUG)).status_code == 201


async def test_a_patch_changes_what_is_given_and_null_clears(client: AsyncClient) -> None:
    created = (await client.post("/items", json=MUG)).json()
    url = f"/items/{created['id']}"
    patched = await client.patch(url, json={"price": 9.99})
    assert patched.status_code == 200
    assert patched.json() | {"updated_at": None} == created | {"price": 9.99, "updated_at": None}
    assert patched.json()["updated_at"] > created["updated_at"]
    cleared = await client.patch(url, json={"description": None})
    assert cleared.json()["description"] is None
    assert cleared.json()["price"] == 9.99
    refused = await client.patch(url, json={"title": None})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/title"


async def test_a_missing_item_is_named(client: AsyncClient) -> None:
    item_id = uuid4()
    for method in ("GET", "PATCH", "DELETE"):
        body = {"price": 1} if method == "PATCH" else None
        response = await client.request(method, f"/items/{item_id}", json=body)
        assert response.status_code == 404
        assert response.json()["detail"] == f"Item {item_id} not found"


async def test_a_deleted_item_is_gone(client: AsyncClient) -> None:
    url = (await client.post("/items", json=MUG)).headers["location"]
    assert (await client.delete(url)).status_code == 204
    assert (await client.get(url)).status_code == 404
    assert (await client.delete(url)).status_code == 404


async def test_a_current_copy_is_not_sent_again(client: AsyncClient) -> None:
    created = await client.post("/items", json=MUG)
    url, tag = created.headers["location"], created.headers["etag"]
    for header in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        response = await client.get(url, headers={"If-None-Match": header})
        assert response.status_code == 304
        assert response.content == b""
        assert response.headers["etag"] == tag
        assert response.headers["cache-control"] == "private, no-cache"
    await client.patch(url, json={"price": 9.99})
    assert (await client.get(url, headers={"If-None-Match": tag})).status_code == 200


@pytest.mark.one_server
async def test_each_microsecond_has_its_tag_in_any_year(
    client: AsyncClient, database_url: str
) -> None:
    """2040, where a float has no room for the microseconds any more."""
    url = (await client.post("/items", json=MUG)).headers["location"]
    connection = await asyncpg.connect(database_url)
    tags = []
    try:
        for microseconds in range(197_005, 197_020):
            at = datetime(2040, 11, 30, 13, 41, 19, microseconds, UTC)
            await connection.execute("UPDATE items SET updated_at = $1", at)
            tags.append((await client.get(url)).headers["etag"])
    finally:
        await connection.close()
    last = 2_237_895_679_197_019  # microseconds since 1970
    assert tags == [f'"{each:x}"' for each in range(last - 14, last + 1)]


async def test_a_stale_change_is_refused(client: AsyncClient) -> None:
    created = await client.post("/items", json=MUG)
    url, stale = created.headers["location"], {"If-Match": created.headers["etag"]}
    first = await client.patch(url, json={"price": 9.99}, headers=stale)
    assert first.status_code == 200
    for refused in (
        await client.patch(url, json={"price": 8.99}, headers=stale),
        await client.delete(url, headers=stale),
    ):
        assert refused.status_code == 412
    assert (await client.get(url)).json()["price"] == 9.99
    weak = {"If-Match": f"W/{first.headers['etag']}"}
    assert (await client.delete(url, headers=weak)).status_code == 412
    assert (await client.delete(url, headers={"If-Match": "*"})).status_code == 204


@pytest.mark.one_server
async def test_a_change_is_later_than_the_one_before_whatever_the_clock_says(
    client: AsyncClient, database_url: str
) -> None:
    """As after a fail-over to a machine whose clock is behind, or a wait for another change."""
    created = await client.post("/items", json=MUG)
    url = created.headers["location"]
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE items SET updated_at = updated_at + interval '1 hour'")
    await connection.close()
    ahead = (await client.get(url)).json()
    changed = await client.patch(url, json={"title": "Cup"})
    assert changed.json()["updated_at"] > ahead["updated_at"]
    row = orjson.dumps({"external_id": MUG["external_id"], "title": "Pot", "price": 1})
    await client.post("/items/import", content=row, headers={"Content-Type": "application/jsonl"})
    replaced = await client.get(url)
    assert replaced.json()["title"] == "Pot"
    assert replaced.json()["updated_at"] > changed.json()["updated_at"]
    assert replaced.headers["etag"] != changed.headers["etag"]


async def test_an_unauthenticated_request_is_challenged(anonymous: AsyncClient) -> None:
    response = await anonymous.get("/items")
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
