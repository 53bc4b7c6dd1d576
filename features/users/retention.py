"""How old a row is, by its id."""

from datetime import UTC, datetime, timedelta
from uuid import UUID


def id_of_age(lifetime: timedelta) -> UUID:
    """Returns an id that is greater than those made longer ago, and less than those made since: a
    UUIDv7 begins with its time in ms (RFC 9562, section 5.7). So the primary key finds old rows."""
    milliseconds = round((datetime.now(UTC) - lifetime).timestamp() * 1_000)
    return UUID(int=milliseconds << 80)
