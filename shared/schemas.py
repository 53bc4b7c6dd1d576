"""Types that every feature's schemas share."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, StringConstraints

NO_NUL = r"^[^\x00]*$"
DATE = re.compile(r"\d{4}-\d\d-\d\d")


def _a_date_first(value: Any) -> Any:
    """Refuses a number, which Pydantic would read as seconds since 1970."""
    if not isinstance(value, datetime) and not DATE.match(str(value)):
        raise ValueError("should be a time with its offset, like 2026-01-31T12:00:00Z")
    return value


def _to_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


Text = Annotated[str, StringConstraints(pattern=NO_NUL)]
"""A string that PostgreSQL can hold: without NUL. (Pydantic refuses lone surrogates itself.)"""

Instant = Annotated[AwareDatetime, BeforeValidator(_a_date_first), AfterValidator(_to_utc)]
"""A point in time (RFC 3339) with its offset, in UTC."""
