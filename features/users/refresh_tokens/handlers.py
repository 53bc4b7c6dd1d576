"""Refresh token rotation: each token works once; a family of tokens is one session.

A token that is used again within the grace period (by a second tab, or after a lost response)
returns the latest token of the family, which can be decrypted only with the older ones. Later
reuse means that the token was stolen, as both the client and the thief have used it: the family
ends (RFC 9700, section 4.14.2).

A token names its family, so that one that was used long ago is known as such without its row: a
family has the row of its latest token, and those of the tokens used within the grace period. The
name is a random id that stands in these tokens alone: with that of the session, which each access
token has, anybody who read one could make a "replay", and end the session.
"""

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from uuid import UUID

from cryptography.fernet import Fernet
from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.accounts.tables import User
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import EventKind
from features.users.opaque_tokens import REFRESH_TOKEN, digest, family_of, is_token, new_token
from features.users.permissions import Permissions, parse_scope
from features.users.refresh_tokens.tables import RefreshToken
from features.users.sessions.handlers import Denial, Grant
from features.users.sessions.tables import Session

INVALID_REFRESH_TOKEN = Denial("invalid_grant", "The refresh token is not valid, or no longer")
INVALID_SCOPE = Denial("invalid_scope", "The session does not have all of these scopes")


async def refresh(
    session: AsyncSession,
    permissions: Permissions,
    token: str,
    client: ClientInfo,
    lifetime: timedelta,
    grace: timedelta,
    scope: str | None = None,
) -> Grant | Denial:
    """Exchanges a refresh token for the next one of its family."""
    family = await _lock_family(session, token)
    if family is None:
        return INVALID_REFRESH_TOKEN
    current, user = family
    now = datetime.now(UTC)
    if current.expires_at <= now or not user.is_active:
        return INVALID_REFRESH_TOKEN
    if scope and not parse_scope(scope) <= permissions.of(user.role, current.scope):
        return INVALID_SCOPE
    since = now - grace
    latest = await _latest_token(session, token, since)
    if latest is None:
        await session.delete(current)
        await record(session, EventKind.REFRESH_REPLAYED, user.id, client)
        return INVALID_REFRESH_TOKEN
    if latest == token:
        latest = await _rotate(session, token, current.id, now)
        await _delete_used(session, current.id, since)
    current.last_used_at, current.expires_at = now, now + lifetime
    current.address, current.user_agent = client.address, client.user_agent
    return Grant(user.id, user.role, current.id, scope or current.scope, latest)


async def _lock_family(session: AsyncSession, token: str) -> tuple[Session, User] | None:
    """Returns and locks the session of the token, so that concurrent refreshes run in turn."""
    family = family_of(token) if is_token(token, REFRESH_TOKEN) else None
    if family is None:
        return None
    locked = (
        select(Session, User)
        .join(User, col(User.id) == col(Session.user_id))
        .where(Session.family_hash == digest(family.hex))
        .with_for_update(of=Session)
    )
    return (await session.exec(locked)).one_or_none()


async def _latest_token(session: AsyncSession, token: str, since: datetime) -> str | None:
    """Follows the successors of the token, and returns the unused one at the end.

    Returns None if a token of that chain was used before `since`, or is not one of the family.
    """
    while True:
        row = await session.get(RefreshToken, digest(token))
        if row is None:
            return None
        if row.used_at is None:
            return token
        if row.used_at < since or row.encrypted_successor is None:
            return None
        token = _encryption_under(token).decrypt(row.encrypted_successor).decode()


async def _rotate(session: AsyncSession, token: str, session_id: UUID, now: datetime) -> str:
    successor = new_token(REFRESH_TOKEN, family_of(token))
    row = await session.get_one(RefreshToken, digest(token))
    row.used_at = now
    row.encrypted_successor = _encryption_under(token).encrypt(successor.encode())
    session.add(RefreshToken(hash=digest(successor), session_id=session_id))
    await session.flush()
    return successor


async def _delete_used(session: AsyncSession, session_id: UUID, before: datetime) -> None:
    await session.exec(
        delete(RefreshToken).where(
            col(RefreshToken.session_id) == session_id, col(RefreshToken.used_at) < before
        )
    )


def _encryption_under(token: str) -> Fernet:
    """Derives the key from the token, so that stored data alone cannot decrypt its successor."""
    key = hashlib.sha256(b"successor of " + token.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))
