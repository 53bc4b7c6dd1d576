"""Sessions: open, list, revoke."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID, uuid4

from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.accounts.tables import Role
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import EventKind
from features.users.opaque_tokens import REFRESH_TOKEN, digest, new_token
from features.users.refresh_tokens.tables import RefreshToken
from features.users.sessions.tables import Session
from shared.problems import NotFound, Unauthorized

RECENT_SIGN_IN = timedelta(minutes=10)
MAX_SESSIONS = 100  # of an account; so to end them all takes one short statement
SURPLUS_PER_SIGN_IN = 1_000


class SignInTooOld(Unauthorized):
    """The request takes a recent proof of identity: the client signs in again (RFC 9470)."""

    headers: Mapping[str, str] = {
        "WWW-Authenticate": 'Bearer error="insufficient_user_authentication",'
        ' error_description="Sign in again",'
        f' max_age="{RECENT_SIGN_IN.total_seconds():.0f}"'
    }

    def __init__(self) -> None:
        minutes = round(RECENT_SIGN_IN.total_seconds() / 60)
        super().__init__(f"This takes a sign-in of the last {minutes} minutes: sign in again")


@dataclass(frozen=True)
class SessionPrincipal:
    """A principal that has signed in: its account, its session and its scopes."""

    user_id: UUID
    session_id: UUID
    scopes: frozenset[str]


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
    client: ClientInfo,
    lifetime: timedelta,
    scope: str | None = None,
    *,
    authenticated_at: datetime | None,
) -> Grant:
    """Opens a session with a new family of tokens. Nothing of an earlier session is reused. Beyond
    `MAX_SESSIONS`, those that were not used for longest are ended.

    `authenticated_at` is when the person proved who they are, None if that is not known."""
    now, family = datetime.now(UTC), uuid4()
    row = Session(
        user_id=user_id,
        family_hash=digest(family.hex),
        scope=scope,
        address=client.address,
        user_agent=client.user_agent,
        created_at=now,
        authenticated_at=authenticated_at,
        last_used_at=now,
        expires_at=now + lifetime,
    )
    session.add(row)
    await session.flush()
    token = new_token(REFRESH_TOKEN, family)
    session.add(RefreshToken(hash=digest(token), session_id=row.id))
    surplus = (
        select(Session.id)
        .where(Session.user_id == user_id, Session.id != row.id)
        .order_by(col(Session.last_used_at).desc(), col(Session.id).desc())
        .offset(MAX_SESSIONS - 1)
        .limit(SURPLUS_PER_SIGN_IN)
    )
    await session.exec(delete(Session).where(col(Session.id).in_(surplus)))
    await record(session, EventKind.SIGNED_IN, user_id, client)
    return Grant(user_id, role, row.id, scope, token)


async def list_sessions(session: AsyncSession, user_id: UUID) -> Sequence[Session]:
    """Returns the sessions that have not expired, the last used first."""
    unexpired = (
        select(Session)
        .where(Session.user_id == user_id, Session.expires_at > datetime.now(UTC))
        .order_by(col(Session.last_used_at).desc(), col(Session.id).desc())
    )
    return (await session.exec(unexpired)).all()


async def require_session(
    session: AsyncSession, user_id: UUID, session_id: UUID
) -> datetime | None:
    """Checks that the session exists, and returns when its person was authenticated, if that is
    known. Call it after locking the account, as the session may have ended while the request
    waited for the lock.

    Raises:
        Unauthorized: the session has ended.
    """
    found = select(Session.id, Session.authenticated_at).where(
        Session.id == session_id, Session.user_id == user_id
    )
    row = (await session.exec(found)).one_or_none()
    if row is None:
        raise Unauthorized("The session has ended: sign in and begin again")
    return row[1]


async def require_recent_sign_in(session: AsyncSession, principal: SessionPrincipal) -> None:
    """Checks that the session exists, and that its person signed in minutes ago, with a password
    here or at a provider that says when: a token that was stolen later, or a device that was left
    signed in here or there, opens no other way in, and closes none.

    Raises:
        Unauthorized: the session has ended.
        SignInTooOld: that was earlier, or is not known.
    """
    at = await require_session(session, principal.user_id, principal.session_id)
    if at is None or at < datetime.now(UTC) - RECENT_SIGN_IN:
        raise SignInTooOld


async def revoke_session(
    session: AsyncSession, user_id: UUID, session_id: UUID, client: ClientInfo
) -> None:
    """Deletes a session, which ends its access everywhere.

    Raises:
        NotFound: the session does not exist, or belongs to another account.
    """
    deleted = await session.exec(
        delete(Session).where(col(Session.id) == session_id, col(Session.user_id) == user_id)
    )
    if deleted.rowcount == 0:
        raise NotFound(f"Session {session_id} not found")
    await record(session, EventKind.SIGNED_OUT, user_id, client)


async def revoke_sessions(
    session: AsyncSession, user_id: UUID, *, except_id: UUID | None = None
) -> None:
    """Deletes all sessions of an account, except the one with the id `except_id`."""
    sessions = delete(Session).where(col(Session.user_id) == user_id)
    if except_id:
        sessions = sessions.where(col(Session.id) != except_id)
    await session.exec(sessions)


async def revoke_other_sessions(
    session: AsyncSession, user_id: UUID, session_id: UUID, client: ClientInfo
) -> None:
    await revoke_sessions(session, user_id, except_id=session_id)
    await record(session, EventKind.SIGNED_OUT, user_id, client, "all other sessions")
