"""The database that commands use: the one that is set, else the embedded PostgreSQL."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.discovery import extensions_of, find_features, new_database
from app.embedded import embedded_postgres, ensure_database
from shared.db import Database
from shared.feature import Feature
from shared.settings import DATA, Settings, load_settings

DATABASE = "tessera"


@contextmanager
def database_of_command(found: Sequence[Feature] | None = None) -> Iterator[Database]:
    """Yields the database of a command, with the subscriptions of all features, or of these."""
    with running_database() as settings:
        yield new_database(settings, find_features() if found is None else found)


@contextmanager
def running_database(settings: Settings | None = None) -> Iterator[Settings]:
    """Yields the settings with the URL of a running database.

    Where no URL is set, in development, it starts the embedded PostgreSQL under `.data/`, or
    shares the one that already runs.
    """
    settings = settings or load_settings(Settings)
    if settings.database_url:
        yield settings
        return
    with embedded_postgres(DATA / "postgres") as server:
        url = asyncio.run(ensure_database(server, DATABASE, extensions_of(find_features())))
        yield settings.model_copy(update={"database_url": url})
