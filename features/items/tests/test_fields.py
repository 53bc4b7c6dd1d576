"""A field that is added to the table and the schemas is created, changed, imported and exported."""

from typing import Any

import pytest
from httpx import AsyncClient

from features.items.schemas import ItemCreate, ItemPublic, ItemUpdate
from features.items.tables import ITEMS
from tests.kit import payload_for

SET_BY_THE_SERVICE = {"id", "owner_id", "created_at", "updated_at"}


def test_the_schemas_have_the_columns_of_the_table() -> None:
    columns = {*ITEMS.c.keys()}
    assert ItemCreate.model_fields.keys() == columns - SET_BY_THE_SERVICE
    assert ItemUpdate.model_fields.keys() == columns - SET_BY_THE_SERVICE
    assert ItemPublic.model_fields.keys() == columns - {"owner_id"}


def two_bodies() -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns two random bodies that have a value in each field, a different one, and no empty
    text, which CSV cannot tell from none."""
    filled = (new for _ in range(1_000) if all((new := payload_for(ItemCreate)).values()))
    first = next(filled)
    second = next(new for new in filled if all(new[name] != first[name] for name in first))
    return first, second


@pytest.mark.parametrize("media_type", ["application/jsonl", "text/csv"])
async def test_a_change_of_each_field_is_exported_and_imported(
    client: AsyncClient, other_client: AsyncClient, media_type: str
) -> None:
    async def copy_to_other() -> dict[str, int]:
        """Imports the export; returns the counts that are not 0."""
        exported = await client.get("/items/export", headers={"Accept": media_type})
        headers = {"Content-Type": media_type}
        answer = await other_client.post("/items/import", content=exported.content, headers=headers)
        return {name: count for name, count in answer.json().items() if count}

    created, changed = two_bodies()
    url = (await client.post("/items", json=created)).headers["location"]
    assert await copy_to_other() == {"created": 1}
    for name in created.keys() - {"external_id"}:
        patched = await client.patch(url, json={name: changed[name]})
        assert patched.json()[name] == changed[name]
        assert await copy_to_other() == {"updated": 1}, name
        assert await copy_to_other() == {"unchanged": 1}, name
    (copy,) = (await other_client.get("/items")).json()["items"]
    assert copy | changed | {"external_id": created["external_id"]} == copy
