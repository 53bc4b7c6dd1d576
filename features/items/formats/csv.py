"""Items as CSV: a header, and a row an item."""

import csv
import io
from collections.abc import AsyncIterator, Iterable, Sequence

from pydantic import ValidationError

from features.items.formats.records import RECORD_TOO_LONG
from features.items.formats.rows import Accepted, Rejected
from features.items.schemas import CsvImportRow, ItemPublic
from shared.problems import Unprocessable

UNCLOSED_QUOTE = "A row that begins here goes on in other lines, as if a quote were not closed"


class CsvParser:
    """Parses the records of one file: the first is the header."""

    def __init__(self) -> None:
        self.header: Sequence[str] = ()

    def parse_record(self, line: int, record: bytes | None) -> Accepted | Rejected | None:
        """Validates a record, or returns None for the header; a record that is too long is None.

        Raises:
            Unprocessable: the header cannot be used, or a quote is not closed, as far as one can
                tell: the number of rows in the record is then unknown.
        """
        try:
            cells = _parse_cells(record, self.header)
        except ValueError as error:
            if not self.header:
                raise Unprocessable(f"The CSV header in line {line}: {error}") from None
            if record is None or len(record.splitlines()) > 1:
                raise Unprocessable(f"Line {line}: {UNCLOSED_QUOTE}: {error}") from None
            return Rejected(line, str(error))
        if self.header:
            return _parse_row(line, cells, self.header)
        self.header = _parse_header(cells)
        return None


def _parse_cells(record: bytes | None, header: Sequence[str]) -> list[str]:
    """Returns the cells of a record, as many as the header has, if there is one.

    Raises:
        ValueError: the record is too long, not CSV in UTF-8, or has too few or too many cells.
    """
    if record is None:
        raise ValueError(RECORD_TOO_LONG)
    try:
        cells = next(csv.reader([record.decode()], strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Not valid CSV in UTF-8: {error}") from None
    if header and len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells, but the header has {len(header)}")
    return cells


def _parse_header(cells: list[str]) -> Sequence[str]:
    header = [cell.strip().lower() for cell in cells]
    for name, field in CsvImportRow.model_fields.items():
        if field.is_required() and name not in header:
            raise Unprocessable(f"The CSV header has no column {name!r}")
    if len(set(header)) < len(header):
        raise Unprocessable("The CSV header names a column twice")
    return header


def _parse_row(line: int, cells: list[str], header: Sequence[str]) -> Accepted | Rejected:
    row = dict(zip(header, cells, strict=True))
    # An empty cell is an absent value. But an empty external_id is kept, as None: without it
    # the alias `id` would be used instead.
    filled = {name: cell or None for name, cell in row.items() if cell or name == "external_id"}
    try:
        return Accepted(line, CsvImportRow.model_validate(filled))
    except ValidationError as error:
        return Rejected(line, error)


async def write_csv(batches: AsyncIterator[Sequence[ItemPublic]]) -> AsyncIterator[bytes]:
    yield _csv_lines([ItemPublic.model_fields.keys()])
    async for batch in batches:
        yield _csv_lines(item.model_dump(mode="json").values() for item in batch)


def _csv_lines(rows: Iterable[Iterable[object]]) -> bytes:
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(rows)
    return lines.getvalue().encode()
