"""Items as JSON Lines and as CSV: parsed and written row by row, in constant memory."""

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
from shared.errors import BadRequest, Unprocessable, message_of

MAX_RECORD_BYTES = 1_000_000
GUNZIP_BYTES = 1 << 16
SLICE_LINES = 500  # so many are parsed at a time, while nobody else is served
OPENING_QUOTE = re.compile(rb'(?:^|,)"')
QUOTED = re.compile(rb'(?:[^"]+|"")*+"')  # up to the closing quote; a double one is text
COLUMNS = tuple(ItemPublic.model_fields)


class Format(StrEnum):
    JSON_LINES = "application/jsonl"
    CSV = "text/csv"


@dataclass(frozen=True)
class Rejected:
    """A row that was not taken, with the reason, which is put in words only for who asks."""

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
    """Decompresses gzip (RFC 1952, several members too) in pieces of bounded size.

    Raises:
        BadRequest: the data is not gzip, or ends too early.
    """
    decompressor = zlib.decompressobj(wbits=31)
    started = False
    try:
        async for chunk in chunks:
            # Between members, and behind the last, gzip passes over zeros.
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
    """The rows, valid or not, some at a time; blank lines are passed over.

    In between others have their turn, even where no row is good and no line holds one.

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
    """Splits bytes into numbered records: lines, except where a CSV quote is still open."""

    quotes: bool
    rest: bytes = b""
    line: int = 1
    pending: list[bytes] = field(default_factory=list)
    length: int = 0
    open_quote: bool = False
    too_long: bool = False

    def lines(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk ends; they are to be joined before the next chunk comes."""
        if len(self.rest) > MAX_RECORD_BYTES:
            self.too_long, self.rest = True, b""
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        return lines

    def join(self, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes | None]]:
        """The records that these lines end; None is one that is too long."""
        for line in lines:
            yield from self._add(line)

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        if self.rest or self.too_long:
            yield from self._add(self.rest)
        if self.pending:
            yield self._take()

    def _add(self, line: bytes) -> Iterator[tuple[int, bytes | None]]:
        """One line more: gives the record that it ends, or None for one that is too long."""
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
    """Whether a CSV field goes on behind this line: a quote opens one only at its beginning."""
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
        # An empty cell is an absent value; but where there is a column external_id, an empty
        # one does not mean that `id` should take its place.
        filled = {name: cell or None for name, cell in row.items() if cell or name == "external_id"}
        try:
            return Accepted(line, ImportRowText.model_validate(filled))
        except ValidationError as error:
            return _not_valid(line, error)


def _cells(line: int, record: bytes | None) -> list[str]:
    """
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
    """Spreadsheets and editors may begin a file with a byte order mark."""
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
    return Rejected(line, error.with_traceback(None))  # or it would keep all the frames alive


def _in_words(error: ValidationError) -> str:
    reasons = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(map(str, problem["loc"]))
        message = message_of(problem)
        reasons.append(f"{where}: {message}" if where else message)
    return "; ".join(reasons)


async def write(
    batches: AsyncIterator[Sequence[ItemPublic]], format_: Format
) -> AsyncIterator[bytes]:
    """The items as bytes, a batch at a time."""
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
