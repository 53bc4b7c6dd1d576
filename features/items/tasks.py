"""Background tasks of items."""

from fastapi import FastAPI

from features.items.handlers import delete_abandoned_rows
from shared.db import database_of
from shared.tasks import PeriodicTask

SWEEP_SECONDS = 3600.0


async def _sweep(app: FastAPI) -> None:
    await delete_abandoned_rows(database_of(app))


delete_abandoned_imports = PeriodicTask(
    name="delete_abandoned_imports", run=_sweep, every=SWEEP_SECONDS
)
