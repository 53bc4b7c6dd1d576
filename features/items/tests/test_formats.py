"""Streams of JSON Lines and CSV become rows, wherever their chunks end."""

import asyncio
import csv
import gzip
import io
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from features.items.formats import Format, parse_rows, records
from features.items.formats.gzip import gunzip
from features.items.formats.records import RECORD_TOO_LONG
from features.items.formats.rows import Accepted, Rejected


async def in_chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def parse(data: bytes, format_: Format, size: int = 1 << 16) -> list[Accepted | Rejected]:
    return [row async for batch in parse_rows(in_chunks(data, size), format_) for row in batch]


def outcomes(rows: Iterable[Accepted | Rejected]) -> list[Any]:
    return [row if isinstance(row, Accepted) else (row.line, row.detail) for row in rows]


@pytest.mark.parametrize(
    "data", [b"x\n", b"\n", b'"\n', b"x"], ids=["bad", "blank", "open", "endless"]
)
@pytest.mark.parametrize("format_", list(Format))
async def test_files_without_a_valid_row_yield_to_other_tasks(format_: Format, data: bytes) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def bomb() -> AsyncIterator[bytes]:
        yield gzip.compress(b"title,price\n" + data * (500_000 // len(data)))

    other_task = asyncio.create_task(count_turns())
    async for _ in parse_rows(gunzip(bomb()), format_):
        pass
    other_task.cancel()
    assert turns >= 5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize(
    ("format_", "data"),
    [
        (
            Format.JSON_LINES,
            '\ufeff{"title": "Ä 1", "price": 1}\r\n\r\n{"title": "2", "price": 2}\nbad\n'
            '{"title": "3", "price": 3}',
        ),
        (
            Format.CSV,
            '\ufeff"title","price"\r\n"Ä ""1""\r\n\r\nand more",1\r\n\r\n27" screen,2\r\nbad\r\n'
            '"a"",""b",3\r\n"open',
        ),
    ],
)
async def test_chunks_may_end_anywhere(format_: Format, data: str, size: int) -> None:
    whole = await parse(data.encode(), format_)
    assert len(whole) >= 4
    assert {type(row) for row in whole} == {Accepted, Rejected}
    assert outcomes(await parse(data.encode(), format_, size)) == outcomes(whole)


async def test_csv_is_parsed_as_by_the_standard_library() -> None:
    fields = ["", "a", '"', '""', ",", "\n", "\r\n", 'a"b', '","', '"\n"', "x\n\ny", '27" screen']
    rows = [[f"{title}.", "1", description] for title in fields for description in fields]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["title", "price", "description"], *rows])
    found = await parse(file.getvalue().encode(), Format.CSV, 5)
    assert [
        [found_row.row.title, "1", found_row.row.description or ""]
        for found_row in found
        if isinstance(found_row, Accepted)
    ] == rows
    starts = [1 + sum(_newlines(rows[:index])) for index in range(len(rows))]
    assert [found_row.line for found_row in found] == [start + 1 for start in starts]


def _newlines(rows: Iterable[list[str]]) -> Iterable[int]:
    return (sum(cell.count("\n") for cell in cells) + 1 for cells in rows)


async def test_an_unclosed_quote_ends_after_the_longest_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 50_000)
    found = await parse(b'title,price\n"open' + b"\n" * 50_100 + b"Mug,1\n", Format.CSV)
    assert found[0] == Rejected(2, RECORD_TOO_LONG)
    assert isinstance(found[1], Accepted)
    assert found[1].line == 50_102
