"""Types that the schemas of all features share."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    StringConstraints,
    WithJsonSchema,
)

NO_NUL = r"^[^\x00]*$"
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
YEAR_ZERO_OR_LEAP_SECOND = "^0000|:60"
DATE = re.compile(r"\d{4}-\d\d-\d\d")


def _a_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("Input should be a number")  # noqa: TRY004  # pydantic wants ValueError
    return value


def _a_date_first(value: Any) -> Any:
    """Rejects a number, which Pydantic would read as seconds since 1970."""
    if not isinstance(value, datetime) and not DATE.match(str(value)):
        raise ValueError("should be a time with its offset, like 2026-01-31T12:00:00Z")
    return value


def _to_utc(instant: datetime) -> datetime:
    """Converts to UTC; beyond Python's range, returns the first or the last `datetime`."""
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        return FIRST if instant.year == FIRST.year else LAST


DatabaseText = Annotated[str, StringConstraints(pattern=NO_NUL)]
"""A string that PostgreSQL can store: without NUL. (Pydantic itself rejects lone surrogates.)"""

JSON_NUMBER = BeforeValidator(_a_number)
"""The last part of the type of a number in a body, where Pydantic would take `"1"` and `true` too:
`Annotated[int, Field(ge=1), JSON_NUMBER]`."""

UtcDatetime = Annotated[
    AwareDatetime,
    BeforeValidator(_a_date_first),
    AfterValidator(_to_utc),
    WithJsonSchema(
        {"type": "string", "format": "date-time", "not": {"pattern": YEAR_ZERO_OR_LEAP_SECOND}}
    ),
]
"""A time with an offset (RFC 3339), converted to UTC. Python has no year 0 and no leap seconds."""
