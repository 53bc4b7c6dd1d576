"""Items as JSON Lines: an object a line."""

from collections.abc import AsyncIterator, Sequence

from pydantic import ValidationError

from features.items.formats.records import RECORD_TOO_LONG
from features.items.formats.rows import Accepted, Rejected
from features.items.schemas import ImportRow, ItemPublic


def parse_json_line(line: int, record: bytes | None) -> Accepted | Rejected:
    """Validates a record; None stands for one that is too long."""
    if record is None:
        return Rejected(line, RECORD_TOO_LONG)
    try:
        return Accepted(line, ImportRow.model_validate_json(record))
    except ValidationError as error:
        return Rejected(line, error)


async def write_json_lines(batches: AsyncIterator[Sequence[ItemPublic]]) -> AsyncIterator[bytes]:
    async for batch in batches:
        yield "".join(f"{item.model_dump_json()}\n" for item in batch).encode()
