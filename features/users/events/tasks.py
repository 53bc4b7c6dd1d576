"""The periodic task of events: the log does not grow for ever."""

from datetime import UTC, datetime, timedelta

from fastapi import FastAPI
from sqlalchemy import ColumnElement, delete, select
from sqlmodel import col

from features.users.events.tables import Event, EventKind
from features.users.settings import UsersSettings
from shared.db import Database, database_of
from shared.db.tables import first_uuid7
from shared.state import settings_of
from shared.tasks import PeriodicTask

BATCH_SIZE = 5_000  # rows per transaction
UNKNOWN_ACCOUNT_LIFETIME = timedelta(days=30)


async def _delete_old_events(app: FastAPI) -> None:
    """Deletes the events that are older than the setting says, and failed sign-ins with an address
    that has no account after 30 days: they hold the addresses of people who never agreed to it."""
    kept = timedelta(days=settings_of(app, UsersSettings).account_events_days)
    database, id_ = database_of(app), col(Event.id)
    now = datetime.now(UTC)
    await _delete_all(database, id_ < first_uuid7(now - kept))
    unknown = (col(Event.user_id).is_(None), col(Event.kind) == EventKind.SIGN_IN_FAILED)
    await _delete_all(database, *unknown, id_ < first_uuid7(now - UNKNOWN_ACCOUNT_LIFETIME))


async def _delete_all(database: Database, *conditions: ColumnElement[bool]) -> None:
    batch = select(col(Event.id)).where(*conditions).limit(BATCH_SIZE)
    statement = delete(Event).where(col(Event.id).in_(batch.with_for_update(skip_locked=True)))
    deleted = BATCH_SIZE
    while deleted == BATCH_SIZE:
        async with database.transaction() as session:
            deleted = await session.execute(statement)


delete_old_events = PeriodicTask(name="delete_old_events", run=_delete_old_events, every=3600)
