"""Records of a stream: each with the number of its first line, and of bounded length."""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

MAX_RECORD_BYTES = 1_000_000
RECORD_TOO_LONG = f"The row is longer than {MAX_RECORD_BYTES:,} bytes"
LINE_END = re.compile(rb"[\r\n]")
OPENING_QUOTE = re.compile(rb'(?:^|,)"')
THROUGH_CLOSING_QUOTE = re.compile(rb'(?:[^"]+|"")*+"')  # a doubled quote is text
AFTER_CLOSING_QUOTE = b",\r\n"

Record: TypeAlias = tuple[int, bytes | None]
"""The number of the first line, and the bytes, or None for a record that is too long."""


@dataclass
class RecordSplitter:
    """Splits a stream into records: a record is a line, or in CSV more, if it ends in quotes.

    A line ends at LF, CR LF or CR, and keeps its end. The byte order mark that spreadsheets and
    editors write is removed; blank records are skipped. The record of a line that goes past
    `MAX_RECORD_BYTES` ends with that line.
    """

    newlines_in_quotes: bool
    incomplete_line: bytearray = field(default_factory=bytearray)
    next_line: int = 1
    record: list[bytes] = field(default_factory=list)
    length: int = 0
    in_quotes: bool = False
    too_long: bool = False

    def split_lines(self, chunk: bytes) -> list[bytes]:
        """Returns the lines that end in this chunk. Pass them to `join_lines` before the next."""
        tail = self.incomplete_line
        if len(tail) > MAX_RECORD_BYTES:
            self.too_long = True
            del tail[:-1]  # perhaps a CR
        ended = tail.endswith(b"\r") or LINE_END.search(chunk)
        tail += chunk
        if not ended:
            return []
        lines = bytes(tail).splitlines(keepends=True)
        # A CR at the end of the chunk may be half of CR LF.
        self.incomplete_line = bytearray(b"" if tail.endswith(b"\n") else lines.pop())
        return lines

    def join_lines(self, lines: Iterable[bytes]) -> Iterator[Record]:
        """Yields the records that end in these lines."""
        for line in lines:
            if self._add(line) and (record := self._end_record()):
                yield record

    def end(self) -> Iterator[Record]:
        """Yields the last record, if the stream ends without a newline or in quotes."""
        if self.incomplete_line or self.too_long:
            self._add(bytes(self.incomplete_line))
        if self.record and (record := self._end_record()):
            yield record

    def _add(self, line: bytes) -> bool:
        """Adds a line to the record, and returns whether it ends the record."""
        if self.next_line == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        self.record.append(line)
        self.next_line += 1
        self.length += len(line)
        self.too_long |= self.length > MAX_RECORD_BYTES
        if self.newlines_in_quotes:
            self.in_quotes = _ends_in_quotes(line, self.in_quotes)
        return self.too_long or not self.in_quotes

    def _end_record(self) -> Record | None:
        """Begins the next record, and returns this one unless it is blank."""
        first_line = self.next_line - len(self.record)
        record = None if self.too_long else b"".join(self.record)
        self.record, self.length = [], 0
        self.in_quotes = self.too_long = False
        return (first_line, record) if record is None or record.strip() else None


def _ends_in_quotes(line: bytes, in_quotes: bool) -> bool:
    """Returns whether a quoted CSV field is open at the end of this line.

    A quote opens a field only at the beginning of the field. A line with text after a closing quote
    is not CSV, and ends its record.
    """
    position = 0
    while True:
        if not in_quotes:
            opening = OPENING_QUOTE.search(line, position)
            if opening is None:
                return False
            position = opening.end()
        quoted = THROUGH_CLOSING_QUOTE.match(line, position)
        if quoted is None:
            return True
        in_quotes, position = False, quoted.end()
        if line[position : position + 1] not in AFTER_CLOSING_QUOTE:
            return False
