"""Background tasks of accounts."""

from datetime import UTC, datetime, timedelta

from fastapi import FastAPI
from sqlalchemy import ColumnElement, delete, inspect, select
from sqlmodel import SQLModel, col
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.handlers.passwords import RESET_CHANNEL, answer_reset_requests
from features.users.keyring import remove_expired_keys
from features.users.settings import MAX_ACCESS_LIFETIME
from features.users.state import state_of
from features.users.tables import RefreshToken, Revocation, Session
from shared.tasks import Task

BATCH = 1_000  # rows per statement, so that none exceeds the statement timeout


async def _answer_reset_requests(app: FastAPI) -> int:
    state = state_of(app)
    async with state.database.orm_transaction() as session:
        return await answer_reset_requests(session, state.links)


async def _forget_ended(app: FastAPI) -> int:
    """Deletes a batch each of expired sessions, old used refresh tokens and old revocations, and
    the signing keys whose tokens have expired."""
    state, now = state_of(app), datetime.now(UTC)
    unused = now - timedelta(seconds=state.settings.session_lifetime)
    known = now - 2 * MAX_ACCESS_LIFETIME
    async with state.database.orm_transaction() as session:
        done = await _delete(session, Session, col(Session.expires_at) < now)
        done += await _delete(session, RefreshToken, col(RefreshToken.used_at) < unused)
        done += await _delete(session, Revocation, col(Revocation.created_at) < known)
        await remove_expired_keys(session, MAX_ACCESS_LIFETIME)
    return done


async def _delete(session: AsyncSession, table: type[SQLModel], ended: ColumnElement[bool]) -> int:
    """Deletes a batch of the matching rows, and returns their number."""
    (key,) = inspect(table).primary_key
    some = select(key).where(ended).limit(BATCH).with_for_update(skip_locked=True)
    return (await session.exec(delete(table).where(key.in_(some)))).rowcount


reset_requests = Task(
    name="reset_requests", run=_answer_reset_requests, every=5, channel=RESET_CHANNEL
)
ended_access = Task(name="ended_access", run=_forget_ended, every=600)
