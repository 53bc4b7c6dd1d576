"""Types that every feature's schemas share."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, StringConstraints

NO_NUL = r"^[^\x00]*$"


def _to_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


Text = Annotated[str, StringConstraints(pattern=NO_NUL)]
"""A string that PostgreSQL can hold: without NUL. (Pydantic refuses lone surrogates itself.)"""

Instant = Annotated[AwareDatetime, AfterValidator(_to_utc)]
"""A point in time (RFC 3339) with its offset, in UTC."""
