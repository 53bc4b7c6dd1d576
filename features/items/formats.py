"""Items as JSON Lines and CSV, parsed and written as streams, in constant memory."""

import asyncio
import codecs
import csv
import io
import re
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from pydantic import ValidationError

from features.items.schemas import ImportRow, ImportRowText, ItemPublic
from shared.problems import BadRequest, Unprocessable, error_message

MAX_RECORD_BYTES = 1_000_000
GUNZIP_BYTES = 1 << 16
SLICE_LINES = 500  # parsed at a time, which blocks the event loop
OPENING_QUOTE = re.compile(rb'(?:^|,)"')
QUOTED = re.compile(rb'(?:[^"]+|"")*+"')  # up to the closing quote; a doubled one is text
COLUMNS = tuple(ItemPublic.model_fields)


class Format(StrEnum):
    JSON_LINES = "application/jsonl"
    CSV = "text/csv"


@dataclass(frozen=True)
class Rejected:
    """A row that was rejected. The reason is formatted only when `detail` is read."""

    line: int
    reason: str | ValidationError

    @property
    def detail(self) -> str:
        return self.reason if isinstance(self.reason, str) else _in_words(self.reason)


@dataclass(frozen=True)
class Accepted:
    line: int
    row: ImportRow


async def gunzip(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Decompresses gzip (RFC 1952, several members too) in chunks of bounded size.

    Raises:
        BadRequest: the data is not gzip, or is truncated.
    """
    decompressor = zlib.decompressobj(wbits=31)
    started = False
    try:
        async for chunk in chunks:
            # The gzip tool ignores zero bytes between members and after the last one.
            while chunk := chunk.lstrip(b"\0") if decompressor.eof else chunk:
                if decompressor.eof:
                    decompressor = zlib.decompressobj(wbits=31)
                started = True
                yield decompressor.decompress(chunk, GUNZIP_BYTES)
                chunk = decompressor.unconsumed_tail or decompressor.unused_data
    except zlib.error:
        raise BadRequest("The body is not valid gzip") from None
    if started and not decompressor.eof:
        raise BadRequest("The gzip data ends too early")


async def parse(
    chunks: AsyncIterator[bytes], format_: Format
) -> AsyncIterator[list[Accepted | Rejected]]:
    """Parses the rows, and yields them in batches, valid or not. Blank lines are skipped.

    Yields to the event loop after every `SLICE_LINES` lines, even if they hold no valid row.

    Raises:
        Unprocessable: the CSV has no usable header.
    """
    parser: _Parser = _CsvParser() if format_ is Format.CSV else _JsonLinesParser()
    records = _Records(quotes=format_ is Format.CSV)
    async for chunk in chunks:
        lines = records.lines(chunk)
        for start in range(0, len(lines) + 1, SLICE_LINES):
            yield list(parser.rows(records.join(lines[start : start + SLICE_LINES])))
            await asyncio.sleep(0)
    yield list(parser.rows(records.end()))


@dataclass
class _Records:
    """Splits bytes into numbered records: a record is a line, or more if a CSV quote is open."""

    quotes: bool
    rest: bytes = b""
    line: int = 1
    pending: list[bytes] = field(default_factory=list)
    length: int = 0
    open_quote: bool = False
    too_long: bool = False

    def lines(self, chunk: bytes) -> list[bytes]:
        """Returns the lines that end in this chunk. Pass them to `join` before the next chunk."""
        if len(self.rest) > MAX_RECORD_BYTES:
            self.too_long, self.rest = True, b""
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        return lines

    def join(self, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
        """Yields the records that end in these lines; None stands for one that is too long."""
        for line in lines:
            yield from self._add(line)

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        if self.rest or self.too_long:
            yield from self._add(self.rest)
        if self.pending:
            yield self._take()

    def _add(self, line: bytes) -> Iterator[tuple[int, bytes | None]]:
        """Adds a line, and yields the record that it ends; None stands for one that is too long."""
        self.pending.append(line)
        self.line += 1
        self.length += len(line) + 1
        self.too_long |= self.length > MAX_RECORD_BYTES + 1
        if self.quotes:
            self.open_quote = _ends_in_quotes(line, self.open_quote)
        if self.too_long or not self.open_quote:
            yield self._take()

    def _take(self) -> tuple[int, bytes | None]:
        first = self.line - len(self.pending)
        record = None if self.too_long else b"\n".join(self.pending)
        self.pending, self.length = [], 0
        self.open_quote = self.too_long = False
        return first, record


def _ends_in_quotes(line: bytes, in_quotes: bool) -> bool:
    """Whether a quoted CSV field is open at the end of this line.

    A quote opens a field only at the beginning of the field.
    """
    position = 0
    while True:
        if not in_quotes:
            opening = OPENING_QUOTE.search(line, position)
            if opening is None:
                return False
            position = opening.end()
        quoted = QUOTED.match(line, position)
        if quoted is None:
            return True
        in_quotes, position = False, quoted.end()


class _Parser(Protocol):
    def rows(
        self, records: Iterable[tuple[int, bytes | None]]
    ) -> Iterator[Accepted | Rejected]: ...


class _JsonLinesParser:
    def rows(self, records: Iterable[tuple[int, bytes | None]]) -> Iterator[Accepted | Rejected]:
        for line, record in records:
            if record is None:
                yield _too_long(line)
            elif record.strip():
                try:
                    yield Accepted(line, ImportRow.model_validate_json(_without_bom(line, record)))
                except ValidationError as error:
                    yield _not_valid(line, error)


class _CsvParser:
    def __init__(self) -> None:
        self.header: Sequence[str] = ()

    def rows(self, records: Iterable[tuple[int, bytes | None]]) -> Iterator[Accepted | Rejected]:
        for line, record in records:
            if record is not None and not record.strip():
                continue
            try:
                cells = _cells(line, record)
            except ValueError as error:
                if not self.header:
                    raise Unprocessable(f"The CSV header in line {line}: {error}") from None
                yield Rejected(line, str(error))
                continue
            if self.header:
                yield self._row(line, cells)
            else:
                self.header = _header(cells)

    def _row(self, line: int, cells: list[str]) -> Accepted | Rejected:
        if len(cells) != len(self.header):
            return Rejected(line, f"{len(cells)} cells, but the header has {len(self.header)}")
        row = dict(zip(self.header, cells, strict=True))
        # An empty cell is an absent value. But an empty external_id is kept, as None: without it
        # the alias `id` would be used instead.
        filled = {name: cell or None for name, cell in row.items() if cell or name == "external_id"}
        try:
            return Accepted(line, ImportRowText.model_validate(filled))
        except ValidationError as error:
            return _not_valid(line, error)


def _cells(line: int, record: bytes | None) -> list[str]:
    """Returns the cells of a record.

    Raises:
        ValueError: the record is too long, or not CSV in UTF-8.
    """
    if record is None:
        raise ValueError(_too_long(line).detail)
    try:
        text = _without_bom(line, record).decode().removesuffix("\r")
        return next(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Not valid CSV in UTF-8: {error}") from None


def _without_bom(line: int, record: bytes) -> bytes:
    """Removes the byte order mark that spreadsheets and editors may write."""
    return record.removeprefix(codecs.BOM_UTF8) if line == 1 else record


def _header(cells: list[str]) -> Sequence[str]:
    header = [cell.strip().lower() for cell in cells]
    for required in ("title", "price"):
        if required not in header:
            raise Unprocessable(f"The CSV header has no column {required!r}")
    if len(set(header)) < len(header):
        raise Unprocessable("The CSV header names a column twice")
    return header


def _too_long(line: int) -> Rejected:
    return Rejected(line, f"The row is longer than {MAX_RECORD_BYTES:,} bytes")


def _not_valid(line: int, error: ValidationError) -> Rejected:
    return Rejected(line, error.with_traceback(None))  # the traceback would keep all frames alive


def _in_words(error: ValidationError) -> str:
    reasons = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(map(str, problem["loc"]))
        message = error_message(problem)
        reasons.append(f"{where}: {message}" if where else message)
    return "; ".join(reasons)


async def write(
    batches: AsyncIterator[Sequence[ItemPublic]], format_: Format
) -> AsyncIterator[bytes]:
    """Encodes the items, a batch at a time."""
    if format_ is Format.JSON_LINES:
        async for batch in batches:
            yield "".join(f"{item.model_dump_json()}\n" for item in batch).encode()
        return
    yield _csv_lines([COLUMNS])
    async for batch in batches:
        yield _csv_lines(item.model_dump(mode="json").values() for item in batch)


def _csv_lines(rows: Iterable[Iterable[object]]) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(rows)
    return lines.getvalue().encode()
