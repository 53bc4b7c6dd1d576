"""Sign-in with email and password."""

from dataclasses import dataclass, field
from datetime import timedelta

from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access import Caller, Permissions, read_scope
from features.users.emails import normal_email
from features.users.handlers.events import record
from features.users.handlers.sessions import Denial, Grant, open_session
from features.users.passwords import Passwords
from features.users.tables import EventKind, User
from shared.db import Database

WRONG = Denial("invalid_grant", "The email or the password is wrong")


@dataclass(frozen=True)
class Credentials:
    email: str
    password: str = field(repr=False)
    scope: str | None = None


async def sign_in(
    database: Database,
    passwords: Passwords,
    permissions: Permissions,
    credentials: Credentials,
    caller: Caller,
    lifetime: timedelta,
) -> Grant | Denial:
    """Opens a session.

    Takes the same time whether or not the account exists, and holds no connection while the
    password is hashed.
    """
    async with database.orm_transaction() as session:
        user = await _find(session, credentials.email)
    matches, renewed = await passwords.verify(
        credentials.password, user.password_hash if user else None
    )
    async with database.orm_transaction() as session:
        current = await _find(session, credentials.email, lock=True) if user and matches else None
        if user is None or current is None:
            await record(session, EventKind.SIGN_IN_FAILED, user.id if user else None, caller)
            return WRONG
        if current.password_hash == user.password_hash:
            current.password_hash = renewed or current.password_hash
            return await _open(session, permissions, current, credentials, caller, lifetime)
    # The hash changed while the password was verified: the password was changed, or a concurrent
    # sign-in replaced a weaker hash. Try again with the new hash.
    return await sign_in(database, passwords, permissions, credentials, caller, lifetime)


async def _open(
    session: AsyncSession,
    permissions: Permissions,
    user: User,
    credentials: Credentials,
    caller: Caller,
    lifetime: timedelta,
) -> Grant | Denial:
    if not user.is_active:
        await record(session, EventKind.SIGN_IN_FAILED, user.id, caller, "not active")
        return WRONG
    allowed = permissions.of(user.role)
    if credentials.scope is not None and not read_scope(credentials.scope) <= allowed:
        return Denial("invalid_scope", "The account does not have all of these scopes")
    return await open_session(session, user.id, user.role, caller, lifetime, credentials.scope)


async def _find(session: AsyncSession, email: str, *, lock: bool = False) -> User | None:
    known = select(User).where(User.email == normal_email(email))
    if lock:
        known = known.with_for_update(key_share=True)
    return (await session.exec(known)).one_or_none()
