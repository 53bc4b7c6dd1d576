"""Helpers of the benchmarks: a separate durable database, and the test data."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from app.embedded import DURABLE, embedded_postgres, ensure_database
from app.migrations import upgrade
from shared.db import Database
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
"""Judged collections next to the project; benchmarks that need one report if it is missing."""


RESULTS = ROOT / "bench-results"


def save(name: str, found: Any) -> None:
    """Saves the measurements of each round, to compare runs."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1))


@contextmanager
def migrated_database() -> Iterator[Settings]:
    """Yields settings with a new, migrated and durable database on an embedded server."""
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as folder:
        Path(folder).chmod(0o755)
        with embedded_postgres(Path(folder), DURABLE) as server:
            url = asyncio.run(ensure_database(server, "bench"))
            upgrade(url)
            yield Settings(
                env="test",
                database_url=url,
                secret_key=SecretStr("benchmark " * 4),
                log_level="warning",
            )


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    assert settings.database_url
    database = Database(settings.database_url, settings)
    try:
        yield database
    finally:
        await database.dispose()
