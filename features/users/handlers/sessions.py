"""Sessions: open, list, end."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access import Caller
from features.users.handlers.events import record
from features.users.opaque import REFRESH_TOKEN, digest, new_token
from features.users.tables import EventKind, RefreshToken, Role, Session
from shared.problems import NotFound, Unauthorized


@dataclass(frozen=True)
class Grant:
    """A session, and the refresh token that continues it."""

    user_id: UUID
    role: Role
    session_id: UUID
    scope: str | None
    refresh_token: str


@dataclass(frozen=True)
class Denial:
    """The reason why a grant is refused (RFC 6749, section 5.2).

    It is a return value, not an exception, so that the writes of the same transaction (a failed
    attempt, the end of a token family) are committed.
    """

    error: Literal["invalid_grant", "invalid_scope"]
    description: str


async def open_session(
    session: AsyncSession,
    user_id: UUID,
    role: Role,
    caller: Caller,
    lifetime: timedelta,
    scope: str | None = None,
) -> Grant:
    """Opens a session with a new family of tokens. Nothing of an earlier session is reused."""
    token, now = new_token(REFRESH_TOKEN), datetime.now(UTC)
    opened = Session(
        user_id=user_id,
        scope=scope,
        address=caller.address,
        user_agent=caller.user_agent,
        created_at=now,
        last_used_at=now,
        expires_at=now + lifetime,
    )
    session.add(opened)
    await session.flush()
    session.add(RefreshToken(hash=digest(token), session_id=opened.id))
    await record(session, EventKind.SIGNED_IN, user_id, caller)
    return Grant(user_id, role, opened.id, scope, token)


async def list_sessions(session: AsyncSession, user_id: UUID) -> Sequence[Session]:
    """Returns the sessions that have not expired, the last used first."""
    open_ones = (
        select(Session)
        .where(Session.user_id == user_id, Session.expires_at > datetime.now(UTC))
        .order_by(col(Session.last_used_at).desc(), col(Session.id).desc())
    )
    return (await session.exec(open_ones)).all()


async def require_session(session: AsyncSession, user_id: UUID, session_id: UUID) -> None:
    """Checks that the session exists. Call it after locking the account, as the session may have
    ended while the request waited for the lock.

    Raises:
        Unauthorized: the session has ended.
    """
    asking = select(Session.id).where(Session.id == session_id, Session.user_id == user_id)
    if (await session.exec(asking)).one_or_none() is None:
        raise Unauthorized("The session has ended: sign in and begin again")


async def end_session(
    session: AsyncSession, user_id: UUID, session_id: UUID, caller: Caller
) -> None:
    """Ends a session.

    Raises:
        NotFound: the session does not exist, or belongs to another account.
    """
    ended = await session.exec(
        delete(Session).where(col(Session.id) == session_id, col(Session.user_id) == user_id)
    )
    if ended.rowcount == 0:
        raise NotFound(f"Session {session_id} not found")
    await record(session, EventKind.SIGNED_OUT, user_id, caller)


async def end_sessions(session: AsyncSession, user_id: UUID, *, but: UUID | None = None) -> None:
    """Ends all sessions of an account, except `but`."""
    ending = delete(Session).where(col(Session.user_id) == user_id)
    await session.exec(ending.where(col(Session.id) != but) if but else ending)


async def end_other_sessions(
    session: AsyncSession, user_id: UUID, session_id: UUID, caller: Caller
) -> None:
    await end_sessions(session, user_id, but=session_id)
    await record(session, EventKind.SIGNED_OUT, user_id, caller, "all other sessions")
