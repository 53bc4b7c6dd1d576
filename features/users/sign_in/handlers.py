"""Sign-in with email and password."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.accounts.email_addresses import normalize_email
from features.users.accounts.handlers import find_user_by_email
from features.users.accounts.tables import User
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import EventKind
from features.users.passwords.hashing import PasswordHasher
from features.users.permissions import Permissions, parse_scope
from features.users.sessions.handlers import Denial, Grant, open_session
from shared.db import Database

WRONG_CREDENTIALS = Denial("invalid_grant", "The email or the password is wrong")


@dataclass(frozen=True)
class Credentials:
    email: str
    password: str = field(repr=False)
    scope: str | None = None


async def sign_in(
    database: Database,
    hasher: PasswordHasher,
    permissions: Permissions,
    credentials: Credentials,
    client: ClientInfo,
    lifetime: timedelta,
) -> Grant | Denial:
    """Opens a session.

    Takes the same time whether or not the account exists, and holds no connection while the
    password is hashed.

    Raises:
        TooManyRequests, Unavailable: the queue of passwords has no slot for the client.
    """
    hasher.check_queue()
    email = normalize_email(credentials.email)
    async with database.orm_transaction() as session:
        user = await find_user_by_email(session, email)
    matches, new_hash = await hasher.verify(
        credentials.password, user.password_hash if user else None
    )
    async with database.orm_transaction() as session:
        current = await find_user_by_email(session, email, lock=True) if matches else None
        if user is None or current is None:
            await record(session, EventKind.SIGN_IN_FAILED, user.id if user else None, client)
            return WRONG_CREDENTIALS
        if current.password_hash == user.password_hash:
            current.password_hash = new_hash or current.password_hash
            return await _open_session(session, permissions, current, credentials, client, lifetime)
    # The hash changed while the password was verified: the password was changed, or a concurrent
    # sign-in replaced a weaker hash. Try again with the new hash.
    return await sign_in(database, hasher, permissions, credentials, client, lifetime)


async def _open_session(
    session: AsyncSession,
    permissions: Permissions,
    user: User,
    credentials: Credentials,
    client: ClientInfo,
    lifetime: timedelta,
) -> Grant | Denial:
    if not user.is_active:
        await record(session, EventKind.SIGN_IN_FAILED, user.id, client, "not active")
        return WRONG_CREDENTIALS
    allowed = permissions.of(user.role)
    if credentials.scope is not None and not parse_scope(credentials.scope) <= allowed:
        return Denial("invalid_scope", "The account does not have all of these scopes")
    return await open_session(
        session,
        user.id,
        user.role,
        client,
        lifetime,
        credentials.scope,
        authenticated_at=datetime.now(UTC),
    )
