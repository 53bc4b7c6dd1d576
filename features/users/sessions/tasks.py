"""The background task of sessions."""

from datetime import UTC, datetime

from fastapi import FastAPI
from sqlalchemy import ColumnElement, delete, func, inspect, select
from sqlmodel import SQLModel, col
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access_tokens.signing_keys import remove_expired_keys
from features.users.access_tokens.tables import Revocation
from features.users.sessions.tables import Session
from features.users.settings import MAX_ACCESS_LIFETIME
from features.users.state import state_of
from shared.tasks import Task

BATCH_SIZE = 1_000  # rows per statement, so that none exceeds the statement timeout


async def _purge_expired_sessions(app: FastAPI) -> int:
    """Deletes a batch each of expired sessions and of old revocations, and the signing keys whose
    tokens have expired."""
    state, now = state_of(app), datetime.now(UTC)
    # By the clock of PostgreSQL, as it has the times of the revocations: a process whose clock is
    # ahead would delete them while tokens that they revoke are valid.
    oldest_revocation = func.now() - 2 * MAX_ACCESS_LIFETIME
    async with state.database.orm_transaction() as session:
        rows = await _delete(session, Session, col(Session.expires_at) < now)
        rows += await _delete(session, Revocation, col(Revocation.created_at) < oldest_revocation)
        await remove_expired_keys(session, MAX_ACCESS_LIFETIME)
    return rows


async def _delete(
    session: AsyncSession, table: type[SQLModel], expired: ColumnElement[bool]
) -> int:
    """Deletes a batch of the matching rows, and returns their number."""
    (key,) = inspect(table).primary_key
    batch = select(key).where(expired).limit(BATCH_SIZE).with_for_update(skip_locked=True)
    return (await session.exec(delete(table).where(key.in_(batch)))).rowcount


purge_expired_sessions = Task(name="purge_expired_sessions", run=_purge_expired_sessions, every=600)
