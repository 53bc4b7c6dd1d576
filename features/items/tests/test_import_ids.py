"""A row of an export that is imported again is the item that it was."""

import json
from typing import Any
from uuid import uuid4

import pytest
from httpx import AsyncClient

from features.items.handlers.import_ids import HAS_ANOTHER_KEY, KEY_IS_TAKEN
from features.items.tests.test_import import CSV, JSONL, NO_ROWS, json_lines, report, send

Item = dict[str, Any]


async def create(client: AsyncClient, title: str, external_id: str | None = None) -> Item:
    new = {"title": title, "price": 1, "external_id": external_id}
    item: Item = (await client.post("/items", json=new)).json()
    return item


async def items(client: AsyncClient) -> dict[str, Item]:
    """Returns all items by id, as an export has them."""
    lines = (await client.get("/items/export")).text.splitlines()
    return {item["id"]: item for item in map(json.loads, lines)}


@pytest.mark.parametrize("media_type", [JSONL, CSV])
async def test_an_export_that_is_imported_again_doubles_nothing(
    client: AsyncClient, media_type: str
) -> None:
    for number in range(3):
        await create(client, f"No key {number}")
        await create(client, f"Key {number}", f"K{number}")
    before = await items(client)
    exported = await client.get("/items/export", headers={"Accept": media_type})
    again = report(send(client, exported.content, media_type))
    assert await again == NO_ROWS | {"unchanged": 6}
    assert await items(client) == before


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_row_with_the_id_of_an_item_changes_it(client: AsyncClient, dry_run: bool) -> None:
    keyless, keyed = await create(client, "No key"), await create(client, "Key", "K")
    rows = [
        {"id": keyless["id"].upper(), "title": "No key 1", "price": 1},
        {"id": keyless["id"], "title": "No key 2", "price": 1, "external_id": None},
        {"id": keyless["id"], "title": "No key 2", "price": 1},
        {"id": keyed["id"], "title": "Key 1", "price": 1},
        {"external_id": "K", "title": "Key 2", "price": 1},
        {"id": keyed["id"], "title": "Key 3", "price": 1, "external_id": "K"},
    ]
    answer = await report(send(client, json_lines(*rows), dry_run=dry_run))
    assert answer == NO_ROWS | {"updated": 5, "unchanged": 1}
    found = await items(client)
    changed = [
        (found[item["id"]]["title"], found[item["id"]]["external_id"]) for item in (keyless, keyed)
    ]
    assert changed == (
        [("No key", None), ("Key", "K")] if dry_run else [("No key 2", None), ("Key 3", "K")]
    )
    assert len(found) == 2


async def test_a_row_with_an_id_gives_the_item_an_external_id(client: AsyncClient) -> None:
    item = await create(client, "No key")
    row = {"id": item["id"], "title": "No key", "price": 1}
    rows = json_lines(row, row | {"external_id": "new"}, row | {"title": "Key"})
    assert await report(send(client, rows)) == NO_ROWS | {"updated": 2, "unchanged": 1}
    assert await report(
        send(client, json_lines(row | {"title": "Key", "external_id": "new"}))
    ) == NO_ROWS | {"unchanged": 1}
    (found,) = (await items(client)).values()
    assert (found["id"], found["title"], found["external_id"]) == (item["id"], "Key", "new")
    assert found["created_at"] == item["created_at"]


async def test_a_row_that_would_take_an_external_id_from_another_is_rejected(
    client: AsyncClient,
) -> None:
    one, two, three = [(await create(client, title))["id"] for title in ("One", "Two", "Three")]
    keyed = (await create(client, "Keyed", "K"))["id"]
    rows = [
        {"id": one, "external_id": "K"},
        {"id": keyed, "external_id": "L"},
        {"id": two, "external_id": "M"},
        {"id": two, "external_id": "N"},
        {"id": one, "external_id": "N"},  # it is free, as the row before was rejected
        {"id": three, "external_id": "N"},
        {"external_id": "N"},
        {"external_id": "O"},
        {"id": three, "external_id": "O"},
    ]
    data = json_lines(
        *(row | {"title": f"Row {line}", "price": 1} for line, row in enumerate(rows, 1))
    )
    errors = {
        1: KEY_IS_TAKEN,
        2: HAS_ANOTHER_KEY,
        4: HAS_ANOTHER_KEY,
        6: KEY_IS_TAKEN,
        9: KEY_IS_TAKEN,
    }
    expected = {
        "created": 1,
        "updated": 3,
        "unchanged": 0,
        "rejected": 5,
        "errors": [{"line": line, "detail": detail} for line, detail in errors.items()],
    }
    assert await report(send(client, data, dry_run=True)) == expected
    assert await report(send(client, data)) == expected
    found = await items(client)
    assert {(item["title"], item["external_id"]) for item in found.values()} == {
        ("Row 7", "N"),
        ("Row 3", "M"),
        ("Three", None),
        ("Keyed", "K"),
        ("Row 8", "O"),
    }
    assert [found[id_]["title"] for id_ in (one, two)] == ["Row 7", "Row 3"]


async def test_an_id_of_another_owner_is_as_one_of_nobody(
    client: AsyncClient, other_client: AsyncClient
) -> None:
    theirs = await create(other_client, "Theirs", "T")
    foreign, nobodys = theirs["id"], str(uuid4())
    for media_type in (JSONL, CSV):
        for id_ in (foreign, nobodys):
            data = (
                json_lines({"id": id_, "title": "Mine", "price": 1})
                if media_type == JSONL
                else f"id,title,price\n{id_},Mine,1\n".encode()
            )
            outcome = "created" if media_type == JSONL else "unchanged"
            assert await report(send(client, data, media_type)) == NO_ROWS | {outcome: 1}
    row = {"title": "Without a key", "price": 1, "external_id": None}
    rows = json_lines(row | {"id": foreign}, row | {"id": nobodys})
    assert await report(send(client, rows)) == NO_ROWS | {"created": 2}
    mine = (await items(client)).values()
    assert sorted(item["external_id"] or "" for item in mine) == sorted(["", "", foreign, nobodys])
    assert not {item["id"] for item in mine} & {foreign, nobodys}
    assert await items(other_client) == {foreign: theirs}
