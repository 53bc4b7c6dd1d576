"""The database that commands use: the one that is set, else the embedded PostgreSQL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.development import running_database
from app.discovery import find_features, new_database
from shared.db import Database
from shared.feature import Feature


@contextmanager
def database_of_command(found: Sequence[Feature] | None = None) -> Iterator[Database]:
    """Yields the database of a command, with the subscriptions of all features, or of these."""
    with running_database() as settings:
        yield new_database(settings, find_features() if found is None else found)
