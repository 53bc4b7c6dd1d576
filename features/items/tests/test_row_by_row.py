"""An import leaves the items, counts and rejections as if its rows were applied one by one.

`apply_row` is that rule, in Python.
"""

import random
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest
from httpx import AsyncClient

from features.items.handlers.import_ids import HAS_ANOTHER_KEY, KEY_IS_TAKEN
from features.items.tests.test_import import json_lines, report, send
from features.items.tests.test_import_ids import create, items

FILES, ROWS = 5, 20
KEYS = [None, "K", "L", "M", "N"]
OUTCOMES = ("created", "updated", "unchanged", "rejected")
FIELDS = ("external_id", "title", "price")

Item = dict[str, Any]


def apply_row(found: dict[str, Item], line: int, row: dict[str, Any]) -> tuple[str, str | None]:
    """Applies a row to the items by id; returns the outcome, and why it was rejected."""
    key = row.get("external_id", row.get("id"))
    item = found.get((row.get("id") or "").lower())
    if item:
        key = None if key and key.lower() == item["id"] else key
        if key and item["external_id"] and key != item["external_id"]:
            return "rejected", HAS_ANOTHER_KEY
        if key and any(other["external_id"] == key for other in found.values() if other != item):
            return "rejected", KEY_IS_TAKEN
        key = key or item["external_id"]
    elif key:
        item = next((each for each in found.values() if each["external_id"] == key), None)
    if item is None:
        found[f"of line {line}"] = {"id": None, "external_id": key} | fields_of(row)
        return "created", None
    before = dict(item)
    item |= {"external_id": key} | fields_of(row)
    return ("unchanged" if item == before else "updated"), None


def fields_of(row: dict[str, Any]) -> Item:
    return {"title": row["title"], "price": row["price"]}


def expected_report(found: dict[str, Item], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    outcomes = [(line, *apply_row(found, line, row)) for line, row in enumerate(rows, 1)]
    counts = {name: sum(name == outcome for _, outcome, _ in outcomes) for name in OUTCOMES}
    errors = [{"line": line, "detail": reason} for line, _, reason in outcomes if reason]
    return {**counts, "errors": errors}


def contents(found: dict[str, Item]) -> list[tuple[Any, ...]]:
    """Returns the items in an order that does not depend on the ids of new ones."""
    return sorted(
        (id_ if item["id"] else "", *(str(item[name]) for name in FIELDS))
        for id_, item in found.items()
    )


def random_row(chance: random.Random, ids: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"title": chance.choice("AB"), "price": 1.5}
    if ids and chance.random() < 0.7:
        id_ = chance.choice(ids)
        row["id"] = chance.choice([id_, id_, id_.upper()])
    if chance.random() < 0.7:
        row["external_id"] = chance.choice([*KEYS, row.get("id")])
    return row


@pytest.mark.parametrize("seed", range(5))
async def test_a_file_is_as_its_rows_one_by_one(client: AsyncClient, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(FILES):
        keyless = [(await create(client, title))["id"] for title in "AB"]
        before = await items(client)
        ids = [*chance.sample(list(before), min(3, len(before))), *keyless, str(uuid4()), "7"]
        rows = [random_row(chance, ids) for _ in range(ROWS)]
        found = {id_: dict(item) for id_, item in before.items()}
        expected = expected_report(found, rows)
        assert await report(send(client, json_lines(*rows), dry_run=True)) == expected, rows
        assert await items(client) == before
        assert await report(send(client, json_lines(*rows))) == expected, rows
        after = await items(client)
        known = {id_: item if id_ in before else item | {"id": None} for id_, item in after.items()}
        assert contents(known) == contents(found), rows
        if number % 3 == 2:  # free keys for the next files
            for id_ in [id_ for id_ in after if chance.random() < 0.6]:
                await client.delete(f"/items/{id_}")
