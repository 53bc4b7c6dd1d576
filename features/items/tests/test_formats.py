"""Streams of JSON Lines and CSV become rows, wherever their chunks end."""

import asyncio
import csv
import gzip
import io
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.items.formats import Format, parse_rows, records
from features.items.formats.gzip import gunzip
from features.items.formats.records import RECORD_TOO_LONG
from features.items.formats.rows import Accepted, Rejected
from shared.problems import Unprocessable


async def in_chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def parse(data: bytes, format_: Format, size: int = 1 << 16) -> list[Accepted | Rejected]:
    return [row async for batch in parse_rows(in_chunks(data, size), format_) for row in batch]


def outcomes(rows: Iterable[Accepted | Rejected]) -> list[Any]:
    return [row if isinstance(row, Accepted) else (row.line, row.detail) for row in rows]


@pytest.mark.parametrize("data", [b"x\n", b"\n", b'"",\n'], ids=["bad", "blank", "quoted"])
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


PIECES = ["A", "title", ",", "1", '"', '""', '","', "\r", "\n", "\r\n", " ", "Ä", "\x00", "\x0b"]
MANGLED = st.lists(st.sampled_from([*PIECES, "\ufeff", "\u2028"]), max_size=40).map("".join)


@given(body=MANGLED, bom=st.sampled_from(["", "\ufeff"]), size=st.sampled_from([1, 5, 1_000]))
@settings(deadline=None)
def test_every_row_of_a_mangled_csv_file_is_counted(body: str, bom: str, size: int) -> None:
    text = "title,price,description\n" + body
    expected, doubtful = _rows_by_the_standard_library(text)
    if doubtful:
        with pytest.raises(Unprocessable, match=f"Line {doubtful[0]}: "):
            asyncio.run(parse((bom + text).encode(), Format.CSV, size))
    else:
        found = asyncio.run(parse((bom + text).encode(), Format.CSV, size))
        assert [row.line for row in found] == expected


def _rows_by_the_standard_library(text: str) -> tuple[list[int], list[int]]:
    """Returns the first line of each row after the header, and of each row over several lines that
    cannot be read, after which the number of rows is unknown."""
    lines = io.StringIO(text, newline="").readlines()
    reader = csv.reader(lines, strict=True)
    rows, doubtful, end = [], [], 0
    while end < len(lines):
        start, cells = end, []
        with suppress(csv.Error):
            cells = next(reader)
        end = reader.line_num
        if "".join(lines[start:end]).encode().strip():
            rows.append(start + 1)
            if end - start > 1 and len(cells) != 3:
                doubtful.append(start + 1)
    return rows[1:], doubtful


@given(lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"))))
@settings(deadline=None)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_of_a_mangled_json_lines_file_is_counted(end: str, lines: list[str]) -> None:
    found = asyncio.run(parse(end.join(lines).encode(), Format.JSON_LINES, 3))
    text = [
        line.removeprefix("\ufeff") if not number else line for number, line in enumerate(lines)
    ]
    expected = [number for number, line in enumerate(text, 1) if line.encode().strip()]
    assert [row.line for row in found] == expected


@pytest.mark.parametrize("open_quote", [b'"open', b"x" * 60_000], ids=["quote", "line"])
async def test_a_csv_row_that_is_too_long_refuses_the_file(
    monkeypatch: pytest.MonkeyPatch, open_quote: bytes
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 50_000)
    file = b"title,price\nMug,1\n" + open_quote + b"\nMug,1" * 10_000
    with pytest.raises(Unprocessable, match=f"Line 3: .*{RECORD_TOO_LONG}"):
        await parse(file, Format.CSV, 1_000)


async def test_a_json_line_that_is_too_long_is_rejected_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 50_000)
    for end in (b"\n", b"\r\n", b"\r"):
        file = b"x" * 300_000 + end + b'{"title": "Mug", "price": 1}' + end
        too_long, mug = await parse(file, Format.JSON_LINES, 1_000)
        assert too_long == Rejected(1, RECORD_TOO_LONG)
        assert (type(mug), mug.line) == (Accepted, 2)
