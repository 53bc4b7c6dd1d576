"""Items as JSON Lines and CSV, parsed and written as streams, in constant memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum

from features.items.formats.csv import CsvParser, write_csv
from features.items.formats.json_lines import parse_json_line, write_json_lines
from features.items.formats.records import RecordSplitter
from features.items.formats.rows import RowBatches
from features.items.schemas import ItemPublic

SLICE_LINES = 500  # parsed at a time, which blocks the event loop


class Format(StrEnum):
    JSON_LINES = "application/jsonl"
    CSV = "text/csv"


async def parse_rows(chunks: AsyncIterator[bytes], format_: Format) -> RowBatches:
    """Parses the rows, and yields them in batches, valid or not. Blank lines are skipped.

    Yields to the event loop after every `SLICE_LINES` lines, even if they hold no valid row.

    Raises:
        Unprocessable: the CSV has no usable header.
    """
    parse_record = CsvParser().parse_record if format_ is Format.CSV else parse_json_line
    splitter = RecordSplitter(newlines_in_quotes=format_ is Format.CSV)
    async for chunk in chunks:
        lines = splitter.split_lines(chunk)
        for start in range(0, len(lines) + 1, SLICE_LINES):
            records = splitter.join_lines(lines[start : start + SLICE_LINES])
            yield [row for record in records if (row := parse_record(*record))]
            await asyncio.sleep(0)
    yield [row for record in splitter.end() if (row := parse_record(*record))]


def write_items(
    batches: AsyncIterator[Sequence[ItemPublic]], format_: Format
) -> AsyncIterator[bytes]:
    """Encodes the items, a batch at a time."""
    return write_csv(batches) if format_ is Format.CSV else write_json_lines(batches)
