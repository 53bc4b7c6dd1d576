"""Pages of items: by offset, by cursor, filtered and sorted."""

from typing import Any

import pytest
from httpx import AsyncClient

SORTS = [
    f"{sign}{key}" for key in ("created_at", "updated_at", "price", "title") for sign in ("", "-")
]


async def create_items(
    client: AsyncClient, *prices: float, title: str = "Item"
) -> list[dict[str, Any]]:
    items = []
    for price in prices:
        created = await client.post("/items", json={"title": title, "price": price})
        assert created.status_code == 201
        items.append(created.json())
    return items


async def all_pages(client: AsyncClient, **query: Any) -> list[dict[str, Any]]:
    """Returns all items, read page by page with cursors."""
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(100):
        page = await client.get(
            "/items", params={**query, **({"cursor": cursor} if cursor else {})}
        )
        assert page.status_code == 200, page.text
        items += page.json()["items"]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            return items
    raise AssertionError("the cursors never end")


async def test_a_page_has_its_number_and_the_total(client: AsyncClient) -> None:
    added = await create_items(client, 1, 2, 3, 4, 5)
    page = (await client.get("/items", params={"skip": 2, "limit": 2})).json()
    assert [item["id"] for item in page["items"]] == [added[2]["id"], added[1]["id"]]
    assert (page["total"], page["page"], page["page_size"]) == (5, 2, 2)
    assert page["next_cursor"]
    last = (await client.get("/items", params={"skip": 4, "limit": 2})).json()
    assert last["next_cursor"] is None
    beyond = (await client.get("/items", params={"skip": 50})).json()
    assert (beyond["items"], beyond["total"], beyond["next_cursor"]) == ([], 5, None)


async def test_an_empty_list(client: AsyncClient) -> None:
    assert (await client.get("/items")).json() == {
        "items": [],
        "total": 0,
        "page": 1,
        "page_size": 20,
        "next_cursor": None,
    }


async def test_the_total_can_be_left_out(client: AsyncClient) -> None:
    await create_items(client, 1)
    assert (await client.get("/items", params={"total": "false"})).json()["total"] is None


@pytest.mark.parametrize("sort", SORTS)
async def test_cursors_visit_each_item_once_in_order(client: AsyncClient, sort: str) -> None:
    await create_items(client, 3, 1, 2, 2, 2, 1, title="Same")
    await create_items(client, 7, 8, title="Other")
    key = sort.removeprefix("-")
    items = await all_pages(client, sort=sort, limit=3)
    assert len({item["id"] for item in items}) == len(items) == 8
    ordered = sorted(items, key=lambda item: (item[key], item["id"]), reverse=sort[0] == "-")
    assert items == ordered


async def test_a_cursor_of_the_longest_title_is_accepted(client: AsyncClient) -> None:
    for first in range(2):  # characters of four bytes in UTF-8
        title = "".join(chr(0x10000 + (first + n * 7919) % 0xFFFFF) for n in range(500))
        await create_items(client, 1, title=title)
    assert len(await all_pages(client, sort="title", limit=1)) == 2


async def test_cursors_are_stable_while_items_are_added(client: AsyncClient) -> None:
    before = await create_items(client, 1, 2, 3, 4)
    first = (await client.get("/items", params={"limit": 2})).json()
    await create_items(client, 9, 9, 9)
    query = {"limit": 2, "cursor": first["next_cursor"]}
    second = (await client.get("/items", params=query)).json()
    seen = [item["id"] for item in first["items"] + second["items"]]
    assert seen == [item["id"] for item in reversed(before)]
    assert second["page"] is None
    assert second["next_cursor"] is None


async def test_a_cursor_is_valid_for_its_own_query_alone(
    client: AsyncClient, other_client: AsyncClient
) -> None:
    await create_items(client, 1, 2, 3)
    cursor = (await client.get("/items", params={"limit": 1})).json()["next_cursor"]
    tampered = cursor[:-2] + ("A" if cursor[-2] != "A" else "B") + cursor[-1]
    for requester, query in [
        (client, {"cursor": tampered}),
        (client, {"cursor": "nonsense"}),
        (client, {"cursor": cursor, "sort": "price"}),
        (client, {"cursor": cursor, "min_price": 1}),
        (client, {"cursor": cursor, "q": "Item"}),
        (other_client, {"cursor": cursor}),
    ]:
        response = await requester.get("/items", params=query)
        assert response.status_code == 400, query
        assert "cursor" in response.json()["detail"]
    assert (await client.get("/items", params={"cursor": cursor, "limit": 2})).status_code == 200


async def test_filters(client: AsyncClient) -> None:
    items = await create_items(client, 10, 20, 30)
    await create_items(client, 40, title="Blue 50% ENAMEL_mug")

    async def prices(**query: Any) -> list[float]:
        page = (await client.get("/items", params={"sort": "price", **query})).json()
        assert page["total"] == len(page["items"])
        return [item["price"] for item in page["items"]]

    assert await prices(min_price=20) == [20, 30, 40]
    assert await prices(max_price=20) == [10, 20]
    assert await prices(min_price=15, max_price="30.00") == [20, 30]
    assert await prices(min_price="0e-999999", max_price="10.0000000000") == [10]
    assert await prices(min_price="10.001", max_price="20.00000000000001") == [20]
    assert await prices(max_price="1e-20000") == []
    assert await prices(created_after=items[1]["created_at"]) == [30, 40]
    assert await prices(created_before=items[1]["created_at"]) == [10]
    assert await prices(q="enamel") == [40]
    assert await prices(q="%") == [40]
    assert await prices(q="_m") == [40]
    assert await prices(q="plate") == []


BAD_QUERIES: list[dict[str, Any]] = [
    {"limit": 0},
    {"limit": 101},
    {"limit": "many"},
    {"skip": -1},
    {"skip": 10**9},
    {"sort": "owner_id"},
    {"sort": "price desc"},
    {"min_price": "NaN"},
    {"min_price": "-1"},
    {"max_price": "1e400"},
    {"created_after": "yesterday"},
    {"created_after": "2026-01-01T00:00:00"},
    {"created_after": "0000-01-01T00:00:00Z"},
    {"created_after": "2016-12-31T23:59:60Z"},
    {"q": ""},
    {"q": "\x00"},
    {"q": "x" * 201},
    {"total": "perhaps"},
    {"unknown": 1},
]


async def test_a_bad_query_is_refused_by_name(
    client: AsyncClient, subtests: pytest.Subtests
) -> None:
    for query in BAD_QUERIES:
        with subtests.test(query=query):
            response = await client.get("/items", params=query)
            assert response.status_code == 422
            (name,) = query
            (error,) = response.json()["errors"]
            assert (error["location"], error["pointer"]) == ("query", f"/{name}")


async def test_a_time_before_the_first_in_utc_is_the_first(client: AsyncClient) -> None:
    """All items were created after it."""
    await create_items(client, 1)
    after = {"created_after": "0001-01-01T00:00:00+14:00"}
    assert (await client.get("/items", params=after)).json()["total"] == 1


async def test_skip_and_cursor_cannot_be_combined(client: AsyncClient) -> None:
    response = await client.get("/items", params={"skip": 1, "cursor": "x"})
    assert response.status_code == 422
    assert "cannot be combined" in response.json()["errors"][0]["detail"]
