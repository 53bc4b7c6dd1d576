"""Refresh token rotation: each token works once; a family of tokens is one session.

A token that is used again within the grace period (by a second tab, or after a lost response)
returns the newest token of the family, which can be decrypted only with the older ones. Later
reuse means that the token was stolen, as both the client and the thief have used it: the family
ends (RFC 9700, section 4.14.2).
"""

import base64
import hashlib
from datetime import UTC, datetime, timedelta

from cryptography.fernet import Fernet
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access import Caller, read_scope
from features.users.handlers.events import record
from features.users.handlers.sessions import Denial, Grant
from features.users.opaque import REFRESH_TOKEN, digest, is_token, new_token
from features.users.tables import EventKind, RefreshToken, Session, User

INVALID = Denial("invalid_grant", "The refresh token is not valid, or no longer")
WIDER = Denial("invalid_scope", "The scope is wider than what was granted at first")


async def refresh(
    session: AsyncSession,
    token: str,
    caller: Caller,
    lifetime: timedelta,
    grace: timedelta,
    scope: str | None = None,
) -> Grant | Denial:
    """Exchanges a refresh token for the next one of its family."""
    family = await _lock_family(session, token)
    if family is None:
        return INVALID
    opened, user = family
    now = datetime.now(UTC)
    if opened.expires_at <= now or not user.is_active:
        return INVALID
    if scope and opened.scope and not read_scope(scope) <= read_scope(opened.scope):
        return WIDER
    newest = await _newest(session, token, now - grace)
    if newest is None:
        await session.delete(opened)
        await record(session, EventKind.REFRESH_REPLAYED, user.id, caller)
        return INVALID
    if newest == token:
        newest = await _rotate(session, token, opened, now)
    opened.last_used_at, opened.expires_at = now, now + lifetime
    opened.address, opened.user_agent = caller.address, caller.user_agent
    return Grant(user.id, user.role, opened.id, scope or opened.scope, newest)


async def _lock_family(session: AsyncSession, token: str) -> tuple[Session, User] | None:
    """Returns and locks the session of the token, so that concurrent refreshes run in turn."""
    if not is_token(token, REFRESH_TOKEN):
        return None
    family = (
        select(Session, User)
        .join(RefreshToken, col(RefreshToken.session_id) == col(Session.id))
        .join(User, col(User.id) == col(Session.user_id))
        .where(RefreshToken.hash == digest(token))
        .with_for_update(of=Session)
    )
    return (await session.exec(family)).one_or_none()


async def _newest(session: AsyncSession, token: str, since: datetime) -> str | None:
    """Follows the successors of the token, and returns the unused one at the end.

    Returns None if a token of that chain was used before `since`.
    """
    while True:
        row = await session.get(RefreshToken, digest(token))
        assert row is not None
        if row.used_at is None:
            return token
        if row.used_at < since or row.sealed_successor is None:
            return None
        token = _seal_of(token).decrypt(row.sealed_successor).decode()


async def _rotate(session: AsyncSession, token: str, opened: Session, now: datetime) -> str:
    successor = new_token(REFRESH_TOKEN)
    row = await session.get_one(RefreshToken, digest(token))
    row.used_at = now
    row.sealed_successor = _seal_of(token).encrypt(successor.encode())
    session.add(RefreshToken(hash=digest(successor), session_id=opened.id))
    await session.flush()
    return successor


def _seal_of(token: str) -> Fernet:
    """Derives the key from the token, so that stored data alone cannot decrypt its successor."""
    key = hashlib.sha256(b"successor of " + token.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))
