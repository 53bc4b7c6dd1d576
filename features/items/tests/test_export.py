"""Bulk export: all items of one owner, from one snapshot, in the requested format."""

import asyncio
import csv
import io
import json
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.items.handlers import bulk_export, export_items
from features.items.schemas import ItemPublic
from shared.db import database_of
from shared.settings import Settings
from tests.kit import SignUp, connect, eventually, within

Answer = tuple[int, bytes]

ODD_ITEMS: list[dict[str, Any]] = [
    {"title": "Mug", "price": 19.99, "description": "Blue", "external_id": "M-1"},
    {"title": 'A "big", mug', "price": 0.01, "description": "two\r\nlines\n", "external_id": "M-2"},
    {"title": "Ünïcödé 🫖 \u2028", "price": 9999999999.99, "description": None, "external_id": "ö"},
]  # fmt: skip


@pytest.fixture
def snapshot_seconds() -> float:
    return 60.0


@pytest.fixture
def pool_size() -> int:
    return 10


@pytest.fixture
def settings(settings: Settings, snapshot_seconds: float, pool_size: int) -> Settings:
    update = {"database_snapshot_timeout": snapshot_seconds, "database_pool_size": pool_size}
    return settings.model_copy(update=update)


async def create_items(client: AsyncClient, *items: dict[str, Any]) -> list[dict[str, Any]]:
    created = [await client.post("/items", json=item) for item in items]
    assert {response.status_code for response in created} == {201}
    return [response.json() for response in created]


async def export(client: AsyncClient, accept: str = "*/*") -> bytes:
    response = await client.get("/items/export", headers={"Accept": accept})
    assert response.status_code == 200, response.text
    return response.content


async def import_(client: AsyncClient, content: bytes, media_type: str) -> dict[str, int]:
    headers = {"Content-Type": media_type}
    response = await client.post("/items/import", content=content, headers=headers)
    assert response.status_code == 200, response.text
    report: dict[str, int] = response.json()
    assert not report.pop("errors")
    return report


async def test_json_lines_are_the_items_as_the_api_returns_them(client: AsyncClient) -> None:
    items = await create_items(client, *ODD_ITEMS, {"title": "No key", "price": 1})
    lines = (await export(client)).split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == items


async def test_csv_has_a_header_and_a_row_an_item(client: AsyncClient) -> None:
    items = await create_items(client, *ODD_ITEMS)
    text = (await export(client, "text/csv")).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["title"] for row in rows] == [item["title"] for item in ODD_ITEMS]
    assert [float(row["price"]) for row in rows] == [item["price"] for item in ODD_ITEMS]
    assert [row["description"] for row in rows] == ["Blue", "two\r\nlines\n", ""]
    assert list(rows[0]) == list(items[0])


async def test_an_empty_catalogue(client: AsyncClient) -> None:
    assert await export(client) == b""
    assert (await export(client, "text/csv")).count(b"\n") == 1


PREFERENCES: list[tuple[str, str]] = [
    ("*/*", "application/jsonl"),
    ("", "application/jsonl"),
    ("application/*", "application/jsonl"),
    ("application/x-ndjson", "application/jsonl"),
    ("text/*", "text/csv"),
    ("text/csv", "text/csv"),
    ("TEXT/CSV; header=present", "text/csv"),
    ("text/html, text/csv;q=0.1", "text/csv"),
    ("application/jsonl;q=0.5, text/csv", "text/csv"),
    ("application/jsonl;q=0.5, text/csv;q=0.4", "application/jsonl"),
    ("text/csv;q=0.2, */*;q=0.1", "text/csv"),
    ("*/*, application/jsonl;q=0, application/x-ndjson;q=0", "text/csv"),
]


async def test_the_format_is_the_one_preferred(
    client: AsyncClient, subtests: pytest.Subtests
) -> None:
    for accept, media_type in PREFERENCES:
        with subtests.test(accept=accept, media_type=media_type):
            response = await client.get("/items/export", headers={"Accept": accept})
            assert response.status_code == 200
            assert response.headers["content-type"].partition(";")[0] == media_type
            suffix = "csv" if media_type == "text/csv" else "jsonl"
            assert f'filename="items.{suffix}"' in response.headers["content-disposition"]
            assert response.headers["vary"] == "Accept"


@pytest.mark.parametrize("accept", ["application/json", "text/html", "text/csv;q=0", "image/*"])
async def test_another_format_is_not_acceptable(client: AsyncClient, accept: str) -> None:
    response = await client.get("/items/export", headers={"Accept": accept})
    assert response.status_code == 406
    assert response.headers["vary"] == "Accept"
    assert "application/jsonl, text/csv" in response.json()["detail"]


async def test_only_the_owners_items_are_exported(
    client: AsyncClient, other_client: AsyncClient
) -> None:
    await create_items(client, {"title": "Mine", "price": 1})
    await create_items(other_client, {"title": "Theirs", "price": 1})
    assert b"Theirs" not in await export(client)
    assert b"Mine" not in await export(other_client, "text/csv")


@pytest.mark.parametrize("media_type", ["application/jsonl", "text/csv"])
async def test_an_export_can_be_imported(
    client: AsyncClient, other_client: AsyncClient, media_type: str
) -> None:
    await create_items(client, *ODD_ITEMS)
    exported = await export(client, media_type)
    again = {"created": 0, "updated": 0, "unchanged": 3, "rejected": 0}
    assert await import_(client, exported, media_type) == again
    elsewhere = {"created": 3, "updated": 0, "unchanged": 0, "rejected": 0}
    assert await import_(other_client, exported, media_type) == elsewhere
    copies = (await other_client.get("/items", params={"sort": "created_at"})).json()["items"]
    assert [{name: item[name] for name in ODD_ITEMS[0]} for item in copies] == ODD_ITEMS


@pytest.mark.parametrize("media_type", ["application/jsonl", "text/csv"])
async def test_an_item_without_external_id_gets_none(
    client: AsyncClient, other_client: AsyncClient, media_type: str
) -> None:
    await create_items(client, {"title": "No key", "price": 1})
    await import_(other_client, await export(client, media_type), media_type)
    assert (await other_client.get("/items")).json()["items"][0]["external_id"] is None


async def test_stalled_exports_leave_connections_to_others(
    app: FastAPI, client: AsyncClient, other_client: AsyncClient, sign_up: SignUp
) -> None:
    """Three accounts of one network have three of five snapshots, and one account two."""
    begun, gate = asyncio.Semaphore(0), asyncio.Event()

    async def hold(client: AsyncClient, address: str = "127.0.0.1") -> "asyncio.Task[Answer]":
        return asyncio.create_task(request_export(app, client, begun, gate, address))

    reading = [await hold(each) for each in (client, client, client, await sign_up())]
    async with within(30, "the first byte of three exports, and a refusal"):
        for _ in reading:
            await begun.acquire()
    refused = await other_client.get("/items/export")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "requests from your network" in refused.json()["detail"]
    assert (await other_client.get("/items")).status_code == 200
    async with connect(app, "192.0.2.1", headers=other_client.headers) as elsewhere:
        assert (await elsewhere.get("/items/export")).status_code == 200
    reading += [await hold(await sign_up(), f"192.0.2.{number}") for number in (2, 3)]
    async with within(30, "the first byte of two exports more"):
        for _ in range(2):
            await begun.acquire()
    async with connect(app, "192.0.2.4", headers=other_client.headers) as elsewhere:
        assert (await elsewhere.get("/items/export")).status_code == 503
    assert (await other_client.get("/items")).status_code == 200
    gate.set()
    async with within(30, "the end of each export"):
        statuses = [status for status, _ in await asyncio.gather(*reading)]
    assert sorted(statuses) == [200] * 5 + [429]
    assert await export(client) == b""


async def request_export(
    app: FastAPI,
    client: AsyncClient,
    begun: asyncio.Semaphore,
    gate: asyncio.Event,
    address: str = "127.0.0.1",
) -> Answer:
    """Requests an export, but does not read its body until the gate opens; returns the status and
    the body."""
    headers = [(b"authorization", client.headers["Authorization"].encode())]
    scope = {"type": "http", "method": "GET", "path": "/items/export", "query_string": b""}
    messages: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        messages.append(message)
        if message.get("body") or "status" not in message:
            begun.release()
            await gate.wait()

    await app(scope | {"headers": headers, "client": (address, 123)}, receive, send)
    return messages[0]["status"], b"".join(each.get("body", b"") for each in messages)


@pytest.mark.parametrize(("snapshot_seconds", "pool_size"), [(0.2, 2)])
async def test_an_export_that_is_read_slowly_holds_no_transaction(
    app: FastAPI, client: AsyncClient, other_client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the only snapshot: others are exported meanwhile."""
    monkeypatch.setattr(bulk_export, "BATCH_ROWS", 2)
    begun, gate = asyncio.Semaphore(0), asyncio.Event()
    items = await create_items(client, *({"title": f"{n}", "price": 1} for n in range(6)))
    reading = asyncio.create_task(request_export(app, client, begun, gate))
    async with within(30, "the first bytes of the export"):
        await begun.acquire()

    async def is_quiet() -> bool:
        return database_of(app).primary.in_use == 0

    await eventually(is_quiet, "the end of the snapshot", 30)
    await client.delete(f"/items/{items[4]['id']}")
    added = await create_items(client, {"title": "new", "price": 1})
    assert (await other_client.get("/items/export")).status_code == 200
    gate.set()
    async with within(30, "the end of the export"):
        status, body = await reading
    assert status == 200
    left = [*items[:4], items[5], *added]
    assert [json.loads(line) for line in body.splitlines()] == left


@pytest.mark.parametrize("pool_size", [2])
async def test_an_export_that_is_read_slowly_leaves_a_connection_in_the_smallest_pool(
    app: FastAPI, client: AsyncClient, other_client: AsyncClient
) -> None:
    begun, gate = asyncio.Semaphore(0), asyncio.Event()
    await create_items(client, {"title": "Mug", "price": 1})
    reading = asyncio.create_task(request_export(app, client, begun, gate))
    async with within(30, "the first bytes of the export"):
        await begun.acquire()
    assert database_of(app).primary.in_use == 1
    assert (await other_client.get("/items")).status_code == 200
    gate.set()
    async with within(30, "the end of the export"):
        await reading


async def test_an_export_shows_one_snapshot(app: FastAPI, client: AsyncClient) -> None:
    rows = b"".join(b'{"title": "Item %d", "price": 1}\n' % number for number in range(2_500))
    await import_(client, rows, "application/jsonl")
    owner_id = (await client.get("/users/me")).json()["id"]
    exported: list[ItemPublic] = []
    async with database_of(app).snapshot() as session:
        async for batch in export_items(session, owner_id):
            if not exported:
                for item in ((await client.get("/items")).json())["items"]:  # the newest
                    await client.delete(f"/items/{item['id']}")
                await client.post("/items", json={"title": "Too late", "price": 1})
            exported += batch
    assert [item.title for item in exported] == [f"Item {number}" for number in range(2_500)]
