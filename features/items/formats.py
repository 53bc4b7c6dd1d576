"""Items as JSON Lines and as CSV: parsed and written row by row, in constant memory."""

import csv
import io
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from pydantic import ValidationError

from features.items.schemas import ImportRow, ImportRowText, ItemPublic
from shared.errors import BadRequest, Unprocessable, message_of

MAX_RECORD_BYTES = 1_000_000
GUNZIP_BYTES = 1 << 20
COLUMNS = tuple(ItemPublic.model_fields)


class Format(StrEnum):
    JSON_LINES = "application/jsonl"
    CSV = "text/csv"


@dataclass(frozen=True)
class Rejected:
    """A row that was not taken, with the reason."""

    line: int
    detail: str


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
            while chunk:
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
    """The rows of each chunk of bytes, valid or not; blank lines are passed over.

    Raises:
        Unprocessable: the CSV has no usable header.
    """
    parser: _Parser = _CsvParser() if format_ is Format.CSV else _JsonLinesParser()
    records = _Records(quotes=format_ is Format.CSV)
    async for chunk in chunks:
        yield list(parser.rows(records.feed(chunk)))
    yield list(parser.rows(records.end()))


@dataclass
class _Records:
    """Splits bytes into numbered records: lines, except where a CSV quote is still open."""

    quotes: bool
    rest: bytes = b""
    line: int = 1
    too_long: bool = False
    pending: list[bytes] = field(default_factory=list)

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | None]]:
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        for line in lines:
            yield from self._add(line)
        if len(self.rest) > MAX_RECORD_BYTES:
            self.too_long, self.rest = True, b""

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        if self.rest or self.too_long:
            yield from self._add(self.rest)
        if self.pending:
            yield self.line - len(self.pending), b"\n".join(self.pending)

    def _add(self, line: bytes) -> Iterator[tuple[int, bytes | None]]:
        """One line more: gives the record that it ends, or None for one that is too long."""
        self.pending.append(line)
        self.line += 1
        open_quote = self.quotes and sum(part.count(b'"') for part in self.pending) % 2 == 1
        self.too_long |= sum(map(len, self.pending)) > MAX_RECORD_BYTES
        if open_quote and not self.too_long:
            return
        first = self.line - len(self.pending)
        record = None if self.too_long else b"\n".join(self.pending)
        self.pending, self.too_long = [], False
        yield first, record


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
                    yield Accepted(line, ImportRow.model_validate_json(record))
                except ValidationError as error:
                    yield Rejected(line, _reason(error))


class _CsvParser:
    def __init__(self) -> None:
        self.header: Sequence[str] = ()

    def rows(self, records: Iterable[tuple[int, bytes | None]]) -> Iterator[Accepted | Rejected]:
        for line, record in records:
            if record is None:
                yield _too_long(line)
            elif record.strip():
                try:
                    cells = self._cells(record)
                except (UnicodeDecodeError, csv.Error) as error:
                    yield Rejected(line, f"Not valid CSV in UTF-8: {error}")
                    continue
                if self.header:
                    yield self._row(line, cells)
                else:
                    self.header = _header(cells)

    def _cells(self, record: bytes) -> list[str]:
        encoding = "utf-8" if self.header else "utf-8-sig"  # spreadsheets begin with a BOM
        text = record.decode(encoding).removesuffix("\r")
        return next(csv.reader(io.StringIO(text, newline=""), strict=True))

    def _row(self, line: int, cells: list[str]) -> Accepted | Rejected:
        if len(cells) != len(self.header):
            return Rejected(line, f"{len(cells)} cells, but the header has {len(self.header)}")
        filled = {name: cell for name, cell in zip(self.header, cells, strict=True) if cell}
        try:
            return Accepted(line, ImportRowText.model_validate(filled))
        except ValidationError as error:
            return Rejected(line, _reason(error))


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


def _reason(error: ValidationError) -> str:
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
