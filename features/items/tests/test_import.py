"""Bulk import: valid rows are imported, others are reported with their line number."""

import asyncio
import gzip
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response
from sqlalchemy import text

from features.items.formats import Format, parse_rows
from features.items.formats.records import MAX_RECORD_BYTES
from features.items.handlers import import_items, merging
from features.items.settings import ItemsSettings
from shared.db import WriteSession, database_of
from shared.db.locks import advisory_lock
from shared.slots import StreamSlots, current_holder
from shared.web import uploads
from tests.kit import SignUp, connect, eventually, is_ready, within

JSONL = "application/jsonl"
CSV = "text/csv"
COUNT_WAITING = text("""
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
NO_ROWS = {"created": 0, "updated": 0, "unchanged": 0, "rejected": 0, "errors": []}


def json_lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def row(key: int | str, price: float = 1.5, **more: Any) -> dict[str, Any]:
    return {"external_id": str(key), "title": f"Item {key}", "price": price, **more}


async def send(
    client: AsyncClient,
    content: bytes | AsyncIterator[bytes],
    media_type: str = JSONL,
    *,
    encoding: str | None = None,
    dry_run: bool = False,
) -> Response:
    headers = {"Content-Type": media_type} | ({"Content-Encoding": encoding} if encoding else {})
    query = {"dry_run": dry_run}
    return await client.post("/items/import", content=content, headers=headers, params=query)


async def report(response: Awaitable[Response]) -> dict[str, Any]:
    answer = await response
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def titles(client: AsyncClient) -> list[str]:
    page = await client.get("/items", params={"limit": 100, "sort": "created_at"})
    return [item["title"] for item in page.json()["items"]]


async def in_chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("media_type", [JSONL, "application/x-ndjson", "application/jsonl; a=b"])
async def test_json_lines_are_imported(client: AsyncClient, media_type: str) -> None:
    mug = {"external_id": "M", "title": "Mug", "price": 19.99, "description": "Blue"}
    assert await report(send(client, json_lines(mug), media_type)) == NO_ROWS | {"created": 1}
    (item,) = (await client.get("/items")).json()["items"]
    assert item | mug == item


async def test_csv_is_imported(client: AsyncClient) -> None:
    data = b'Title, PRICE ,description,external_id,colour\r\nMug,19.99,"Blue, ""bright""",M,red\r\n'
    assert await report(send(client, data, CSV)) == NO_ROWS | {"created": 1}
    (item,) = (await client.get("/items")).json()["items"]
    assert (item["title"], item["price"], item["external_id"]) == ("Mug", 19.99, "M")
    assert item["description"] == 'Blue, "bright"'


async def test_an_id_becomes_the_external_id(client: AsyncClient) -> None:
    rows = [{"id": 7, "title": "Seven", "price": 1}, row("own", id="ignored")]
    await report(send(client, json_lines(*rows)))
    await report(send(client, b"id,title,price\n8,Eight,1\n", CSV))
    page = (await client.get("/items", params={"sort": "title"})).json()
    assert [item["external_id"] for item in page["items"]] == ["8", "own", "7"]


async def test_an_import_is_an_upsert(client: AsyncClient) -> None:
    first = json_lines(row(1), row(2), row(3))
    assert await report(send(client, first)) == NO_ROWS | {"created": 3}
    assert await report(send(client, first)) == NO_ROWS | {"unchanged": 3}
    second = json_lines(row(1), row(2, price=2.5), row(4))
    expected = {"created": 1, "updated": 1, "unchanged": 1}
    assert await report(send(client, second)) == NO_ROWS | expected
    page = (await client.get("/items", params={"sort": "title"})).json()
    assert [item["price"] for item in page["items"]] == [1.5, 2.5, 1.5, 1.5]


async def test_an_upsert_changes_only_what_differs(client: AsyncClient) -> None:
    await report(send(client, json_lines(row(1), row(2))))
    before = (await client.get("/items", params={"sort": "title"})).json()["items"]
    await report(send(client, json_lines(row(1), row(2, price=2.5))))
    after = (await client.get("/items", params={"sort": "title"})).json()["items"]
    assert after[0] == before[0]
    assert after[1]["id"] == before[1]["id"]
    assert after[1]["created_at"] == before[1]["created_at"]
    assert after[1]["updated_at"] > before[1]["updated_at"]


async def test_rows_without_a_key_are_always_new(client: AsyncClient) -> None:
    rows = json_lines({"title": "Mug", "price": 1}, {"title": "Mug", "price": 1})
    assert await report(send(client, rows)) == NO_ROWS | {"created": 2}
    assert await report(send(client, rows)) == NO_ROWS | {"created": 2}


async def test_each_account_has_its_own_keys(
    client: AsyncClient, other_client: AsyncClient
) -> None:
    assert await report(send(client, json_lines(row(1)))) == NO_ROWS | {"created": 1}
    assert await report(send(other_client, json_lines(row(1, 9)))) == NO_ROWS | {"created": 1}
    assert (await client.get("/items")).json()["items"][0]["price"] == 1.5


@pytest.mark.parametrize("dry_run", [True, False])
async def test_duplicates_in_a_file_count_as_applied_row_by_row(
    client: AsyncClient, dry_run: bool
) -> None:
    await report(send(client, json_lines(row("old", 1), row("same", 1))))
    rows = [
        row("new", 1),
        row("new", 2),
        row("new", 2),
        row("old", 2),
        row("old", 1),
        row("same", 1),
    ]
    answer = await report(send(client, json_lines(*rows), dry_run=dry_run))
    assert answer == NO_ROWS | {"created": 1, "updated": 3, "unchanged": 2}
    items = (await client.get("/items")).json()["items"]
    prices = {item["external_id"]: item["price"] for item in items}
    assert prices == {"old": 1, "same": 1} | ({} if dry_run else {"new": 2})


async def test_a_dry_run_changes_nothing(client: AsyncClient) -> None:
    await report(send(client, json_lines(row(1), row(2))))
    before = (await client.get("/items")).json()
    rows = json_lines(row(1, 9), row(2), row(3)) + b"{}\n"
    trial = await report(send(client, rows, dry_run=True))
    assert (await client.get("/items")).json() == before
    assert await report(send(client, rows)) == trial
    assert (trial["created"], trial["updated"], trial["unchanged"]) == (1, 1, 1)
    assert trial["rejected"] == 1


async def test_bad_rows_are_reported_by_line_and_good_rows_are_kept(client: AsyncClient) -> None:
    lines = [
        json.dumps(row("good")).encode(),
        b"not json",
        b"",
        b'{"title": "no price"}',
        json.dumps(row("bad", price=-1)).encode(),
        b'{"title": "\xff", "price": 1}',
        b'{"title": "nul \\u0000", "price": 1}',
        b'{"title": "\\ud800", "price": 1}',
        b'["title", "price"]',
        b"   ",
        json.dumps(row("long", description="x" * 10_001)).encode(),
        b'{"title": ' + b"[" * 100_000,
        b'{"title": "' + b"x" * MAX_RECORD_BYTES + b'", "price": 1}',
        b'{"title": "text", "price": "1"}',
        json.dumps(row("also good")).encode(),
    ]
    answer = await report(send(client, b"\n".join(lines)))
    assert (answer["created"], answer["rejected"]) == (2, 11)
    assert await titles(client) == ["Item good", "Item also good"]
    reasons = {error["line"]: error["detail"] for error in answer["errors"]}
    assert list(reasons) == [2, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14]
    assert reasons[4] == "price: Field required"
    assert reasons[5] == "price: Input should be greater than 0"
    assert reasons[7] == "title: String should not contain NUL characters"
    assert reasons[11] == "description: String should have at most 10000 characters"
    assert reasons[13] == "The row is longer than 1,000,000 bytes"


async def test_bad_csv_rows_are_reported_by_line_and_good_rows_are_kept(
    client: AsyncClient,
) -> None:
    lines = [
        b"\xef\xbb\xbfexternal_id,title,price,description",
        b'1,"A title',
        b'over three',
        b'lines",1.5,',
        b"",
        b"2,too few cells",
        b"3,,1,no title",
        b"4,Not a price,cheap,",
        b'5,"stray"quote,1,',
        b'6,27" screen,1,quotes in a field that has none around it',
        b"7,\xff,1,",
        b"8,After the bad one,1,",
        b'9,"never closed,1,',
    ]  # fmt: skip
    answer = await report(send(client, b"\r\n".join(lines), CSV))
    assert await titles(client) == [
        "A title\r\nover three\r\nlines",
        '27" screen',
        "After the bad one",
    ]
    reasons = {error["line"]: error["detail"] for error in answer["errors"]}
    assert list(reasons) == [6, 7, 8, 9, 11, 13]
    assert reasons[6] == "2 cells, but the header has 4"
    assert reasons[7] == "title: Field required"
    assert reasons[8].startswith("price: ")
    assert reasons[9] == "Not valid CSV in UTF-8: ',' expected after '\"'"
    assert "UTF-8" in reasons[11]
    assert reasons[13] == "Not valid CSV in UTF-8: unexpected end of data"


ROWS_OVER_LINES = {
    "never closed": b'"open,1\n' + b"Mug,1\n" * 28_572,
    "closed by another row": b'"open,1\nMug,1\n"Mug",1\nMug,1\n',
    "swallows whole rows": b'"open,1\nMug,1\nMug,"\nMug,1\n',
    "too long": b'"open,1\n' + b"Mug,1\n" * 200_000 + b'",1\nMug,1\n',
}


@pytest.mark.parametrize("rows", ROWS_OVER_LINES.values(), ids=ROWS_OVER_LINES)
async def test_a_quote_that_is_not_closed_refuses_the_file_with_its_line(
    client: AsyncClient, rows: bytes
) -> None:
    response = await send(client, b"title,price\nMug,1\n" + rows, CSV)
    assert response.status_code == 422
    assert response.json()["detail"].startswith("Line 3: A row that begins here goes on")
    assert await titles(client) == []


@pytest.mark.parametrize("media_type", [JSONL, CSV])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "mixed"])
async def test_a_line_ends_at_any_line_end(client: AsyncClient, media_type: str, end: str) -> None:
    lines = [
        f"{title},1" if media_type == CSV else f'{{"title": "{title}", "price": 1}}'
        for title in "ABCD"
    ]
    header = ["title,price"] if media_type == CSV else []
    ends = ["\r\n", "\r", "\n"] * 2 if end == "mixed" else [end] * 6
    data = "".join(line + end for line, end in zip([*header, *lines, "bad"], ends, strict=False))
    answer = await report(send(client, data.encode(), media_type))
    assert (answer["created"], answer["rejected"]) == (4, 1)
    assert answer["errors"][0]["line"] == len(header) + 5
    assert await titles(client) == list("ABCD")


@pytest.mark.parametrize("media_type", [JSONL, CSV])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
async def test_a_byte_order_mark_may_have_a_line_of_its_own(
    client: AsyncClient, media_type: str, end: str
) -> None:
    rows = "title,price\nMug,1\n" if media_type == CSV else '{"title": "Mug", "price": 1}\n'
    answer = await report(send(client, f"\ufeff{end}{rows}".encode(), media_type))
    assert answer == NO_ROWS | {"created": 1}


async def test_the_report_stays_short(client: AsyncClient) -> None:
    answer = await report(send(client, b"{}\n" * 1_500))
    assert answer["rejected"] == 1_500
    assert [error["line"] for error in answer["errors"]] == list(range(1, 1_001))


async def test_others_are_answered_while_a_file_without_a_valid_row_is_read(
    client: AsyncClient, other_client: AsyncClient
) -> None:
    packed = gzip.compress((b"x\n" + b"\n" * 50) * 10_000)
    importing = asyncio.create_task(send(client, packed, encoding="gzip"))
    answered = 0
    while not importing.done():
        assert (await other_client.get("/users/me")).status_code == 200
        answered += 1
    assert (await importing).json()["rejected"] == 10_000
    assert answered >= 10


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"title,description\nMug,Blue\n", "has no column 'price'"),
        (b"Mug,1\n", "has no column 'title'"),
        (b"title,price,title\nMug,1,Mug\n", "names a column twice"),
        (b"title,price,\xff\ntitle,price,colour\nMug,1,blue\n", "Not valid CSV in UTF-8"),
    ],
)
async def test_an_unusable_csv_header_is_refused(
    client: AsyncClient, data: bytes, detail: str
) -> None:
    response = await send(client, data, CSV)
    assert response.status_code == 422
    assert detail in response.json()["detail"]


@pytest.mark.parametrize("media_type", [JSONL, CSV])
async def test_an_empty_file_has_no_rows(client: AsyncClient, media_type: str) -> None:
    assert await report(send(client, b"", media_type)) == NO_ROWS
    assert await report(send(client, b"\n\r\n", media_type)) == NO_ROWS
    assert await report(send(client, b"\xef\xbb\xbf", media_type)) == NO_ROWS


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP"])
async def test_gzip_is_decompressed(client: AsyncClient, encoding: str) -> None:
    several = gzip.compress(json_lines(row(1), row(2))[:60]) + gzip.compress(
        json_lines(row(1), row(2))[60:]
    )
    assert await report(send(client, several, encoding=encoding)) == NO_ROWS | {"created": 2}
    padded = b"\0" * 70 + gzip.compress(json_lines(row(3))) + b"\0" * 70
    in_bytes = in_chunks(gzip.compress(b"") + padded, 1)
    assert await report(send(client, in_bytes, encoding=encoding)) == NO_ROWS | {"created": 1}


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (gzip.compress(json_lines(row(1), row(2)))[:-9], "ends too early"),
        (gzip.compress(json_lines(row(1))) + gzip.compress(b"\n")[:5], "ends too early"),
        (json_lines(row(1)), "not valid gzip"),
        (gzip.compress(json_lines(row(1))) + b"garbage", "not valid gzip"),
    ],
    ids=["cut off", "second member cut off", "not gzip", "garbage behind"],
)
async def test_broken_gzip_imports_nothing(client: AsyncClient, data: bytes, detail: str) -> None:
    response = await send(client, data, encoding="gzip")
    assert response.status_code == 400
    assert detail in response.json()["detail"]
    assert await titles(client) == []


@pytest.mark.parametrize("text", [b"x\n", json_lines({"title": "x" * 500, "price": 1})])
async def test_a_gzip_bomb_is_refused(client: AsyncClient, text: bytes) -> None:
    bomb = gzip.compress(text * (40_000_000 // len(text)))
    assert len(bomb) < 300_000
    tracemalloc.start()
    started = time.process_time()
    answer = await send(client, bomb, encoding="gzip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code in {413, 422}
    assert peak < 15_000_000
    assert time.process_time() - started < 15
    assert await titles(client) == []


async def test_text_that_is_compressed_well_is_imported(client: AsyncClient) -> None:
    rows = (row(key, description="the same for all " * 10) for key in range(10_000))
    packed = gzip.compress(json_lines(*rows), 9)
    assert await report(send(client, packed, encoding="gzip")) == NO_ROWS | {"created": 10_000}


@pytest.fixture
def limits(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = ItemsSettings(max_import_size=1_000, max_import_rows=10, max_import_errors=5)
    monkeypatch.setitem(app.state.feature_settings, ItemsSettings, bounds)


LIMITS: dict[str, tuple[bytes, int, str]] = {
    "bytes": (b"\n" + b" " * 1_000, 413, "An import may have 1,000 bytes: divide the file"),
    "lines": (b"\n" * 201, 413, "An import may have 200 lines: divide the file"),
    "rows": (json_lines(*(row(key) for key in range(11))), 422, "An import may have 10 rows"),
    "errors": (
        b"\n" + b"x\n" * 6,
        422,
        "More than 5 rows are not valid, of which one is in line 2: ",
    ),
}


@pytest.mark.parametrize("encoding", [None, "gzip"])
@pytest.mark.parametrize(("data", "status", "detail"), LIMITS.values(), ids=LIMITS)
@pytest.mark.usefixtures("limits")
async def test_a_file_that_is_too_large_is_refused(
    client: AsyncClient, encoding: str | None, data: bytes, status: int, detail: str
) -> None:
    within = json_lines(*(row(key) for key in range(5))) + b"x\n" * 5
    assert (await report(send(client, within)))["created"] == 5
    answer = await send(client, gzip.compress(data) if encoding else data, encoding=encoding)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)
    assert len(await titles(client)) == 5


@pytest.mark.usefixtures("limits")
async def test_compressed_data_without_text_has_a_bound(client: AsyncClient) -> None:
    answer = await send(client, gzip.compress(b"") * 100, encoding="gzip")
    assert answer.status_code == 413


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "nonsense", ""])
async def test_another_media_type_is_refused(client: AsyncClient, media_type: str) -> None:
    response = await send(client, b"{}", media_type)
    assert response.status_code == 415
    assert "application/jsonl, application/x-ndjson, text/csv" in response.json()["detail"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", '"utf-8"', "us-ascii"])
async def test_a_charset_may_be_that_of_json(client: AsyncClient, charset: str) -> None:
    sent = send(
        client, "title,price\nGrün,1\n".encode(), f"{CSV}; header=present; charset={charset}"
    )
    assert await report(sent) == NO_ROWS | {"created": 1}


@pytest.mark.parametrize("charset", ["iso-8859-1", "windows-1252", "utf-16", "rot13", "klingon"])
@pytest.mark.parametrize("media_type", [JSONL, CSV])
async def test_another_charset_is_refused(
    client: AsyncClient, media_type: str, charset: str
) -> None:
    response = await send(client, b"title,price\nGr\xfcn,1\n", f"{media_type};charset={charset}")
    assert response.status_code == 415
    assert "must be in UTF-8" in response.json()["detail"]


@pytest.mark.parametrize("encoding", ["identity", ""])
async def test_a_body_that_is_not_encoded_may_say_so(client: AsyncClient, encoding: str) -> None:
    headers = {"Content-Type": JSONL, "Content-Encoding": encoding}
    answer = client.post("/items/import", content=json_lines(row(1)), headers=headers)
    assert await report(answer) == NO_ROWS | {"created": 1}


async def test_another_encoding_is_refused(client: AsyncClient) -> None:
    response = await send(client, b"{}", encoding="br")
    assert response.status_code == 415
    assert "must be gzip" in response.json()["detail"]


async def test_an_aborted_upload_imports_nothing(app: FastAPI, client: AsyncClient) -> None:
    token = client.headers["Authorization"].encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/items/import",
        "query_string": b"",
        "headers": [(b"authorization", token), (b"content-type", JSONL.encode())],
    }
    messages = [
        {"type": "http.request", "body": json_lines(row(1), row(2)), "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send_(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send_)
    assert not messages, "the import did not read to the end"
    assert not any(message.get("status") == 200 for message in sent)
    assert await titles(client) == []
    assert await report(send(client, json_lines(row(1)))) == NO_ROWS | {"created": 1}


async def test_concurrent_imports_of_the_same_keys_wait_for_each_other(
    client: AsyncClient,
) -> None:
    keys = list(range(2_000))
    files = [
        json_lines(*(row(key, price) for key in order))
        for price, order in enumerate([keys, keys[::-1], keys[1000:] + keys[:1000], keys], 1)
    ]
    answers = await asyncio.gather(*(report(send(client, file)) for file in files))
    expected = [NO_ROWS | {"updated": 2_000}] * 3 + [NO_ROWS | {"created": 2_000}]
    assert sorted(answers, key=lambda answer: int(answer["created"])) == expected
    exported = (await client.get("/items/export")).text.splitlines()
    assert len(exported) == 2_000
    assert len({json.loads(line)["price"] for line in exported}) == 1


async def test_an_import_that_is_committed_is_not_refused_afterwards(
    app: FastAPI, client: AsyncClient
) -> None:
    """Other requests of the account have taken its share of connections meanwhile."""
    owner_id = UUID((await client.get("/users/me")).json()["id"])
    database, gate = database_of(app), asyncio.Event()
    others: list[asyncio.Task[None]] = []

    async def hold() -> None:
        current_holder.set(str(owner_id))
        async with database.transaction():
            await gate.wait()

    async def take_the_share(_session: WriteSession) -> None:
        others.extend(asyncio.create_task(hold()) for _ in range(20))
        await eventually(lambda: database.pool_usage()["write"][0] > 2, "the other requests")

    async def body() -> AsyncIterator[bytes]:
        yield json_lines({"title": "Mug", "price": 1})

    current_holder.set(str(owner_id))
    rows = parse_rows(body(), Format.JSON_LINES)
    done = await import_items(database, owner_id, rows, confirm_access=take_the_share)
    assert done.created == 1
    gate.set()
    await asyncio.gather(*others, return_exceptions=True)
    assert (await client.get("/items")).json()["total"] == 1


async def test_stalled_imports_leave_connections_to_others(
    app: FastAPI, client: AsyncClient, other_client: AsyncClient, sign_up: SignUp
) -> None:
    """Three accounts of one network hold three of five slots, one account two, and all no
    connection."""
    database_of(app).upload_slots = StreamSlots(5, 0.2)
    begun, gate = asyncio.Semaphore(0), asyncio.Event()

    async def held() -> AsyncIterator[bytes]:
        yield json_lines(row(1))
        begun.release()
        await gate.wait()

    async def hold(senders: Sequence[AsyncClient]) -> list["asyncio.Task[Response]"]:
        tasks = [asyncio.create_task(send(sender, held())) for sender in senders]
        async with within(30, "the start of the imports"):
            for _ in tasks:
                await begun.acquire()
        return tasks

    async def refused_as(sender: AsyncClient, status: int) -> str:
        refused = await send(sender, held())
        assert (refused.status_code, refused.headers["retry-after"]) == (status, "1")
        return str(refused.json()["detail"])

    importing = await hold([client, client])
    assert "Too many of your requests" in await refused_as(client, 429)
    importing += await hold([await sign_up()])
    assert "requests from your network" in await refused_as(await sign_up(), 429)
    for key in range(3):
        assert (await other_client.post("/items", json=row(key))).status_code == 201
    await eventually(lambda: is_ready(other_client), "readiness beside the imports", 30)
    async with AsyncExitStack() as stack:
        elsewhere = [
            await stack.enter_async_context(
                connect(app, f"192.0.2.{number}", headers=(await sign_up()).headers)
            )
            for number in range(3)
        ]
        importing += await hold(elsewhere[:2])
        await refused_as(elsewhere[2], 503)
        gate.set()
        async with within(30, "the answer of each import"):
            answers = await asyncio.gather(*importing)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert await report(send(client, json_lines(row(1)))) == NO_ROWS | {"unchanged": 1}


async def test_imports_that_are_merged_leave_connections_to_others(
    app: FastAPI, client: AsyncClient, other_client: AsyncClient, sign_up: SignUp
) -> None:
    """Two of five such transactions are an account's. Others wait for one, and are not refused."""
    owner_id = (await client.get("/users/me")).json()["id"]
    lock = {"key": advisory_lock("items.import", UUID(owner_id))}
    async with database_of(app).transaction() as session:
        await session.execute(merging.LOCK_IMPORTS, lock)
        imports = [asyncio.create_task(send(client, json_lines(row(key)))) for key in range(5)]
        await eventually(lambda: waiting_for_locks(app, 2), "two that are merged", 30)
        assert await report(send(other_client, json_lines(row(1)))) == NO_ROWS | {"created": 1}
        await eventually(lambda: is_ready(other_client), "readiness beside the imports", 30)
        assert await waiting_for_locks(app, 2)
    async with within(60, "the answer of each import"):
        assert [(await each).status_code for each in imports] == [200] * 5


async def waiting_for_locks(app: FastAPI, number: int) -> bool:
    return bool(await database_of(app).read().fetch_value(COUNT_WAITING) == number)


async def test_a_stalled_upload_is_aborted(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "STALL_SECONDS", 0.1)

    async def stopped() -> AsyncIterator[bytes]:
        yield json_lines(row(1))
        await asyncio.Event().wait()

    for _ in range(6):  # each frees its slot for the next
        given_up = await send(client, stopped())
        assert given_up.status_code == 408
        assert "0.1 s" in given_up.json()["detail"]
    assert await titles(client) == []


async def test_tens_of_thousands_of_rows(client: AsyncClient) -> None:
    data = json_lines(*(row(key, description="x" * 100) for key in range(20_000)))
    chunks = in_chunks(data, 1 << 16)
    assert await report(send(client, chunks)) == NO_ROWS | {"created": 20_000}
    packed = gzip.compress(data, 1)
    assert await report(send(client, packed, encoding="gzip")) == NO_ROWS | {"unchanged": 20_000}
    exported = await client.get("/items/export")
    assert len(exported.text.splitlines()) == 20_000
