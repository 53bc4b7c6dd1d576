"""Accounts: register, read, update, delete."""

from uuid import UUID

import sqlalchemy
from sqlalchemy import bindparam
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access import Caller
from features.users.emails import normal_email
from features.users.handlers.events import record
from features.users.handlers.sessions import end_sessions
from features.users.handlers.verification import send_verification
from features.users.links import Links
from features.users.passwords import Passwords
from features.users.schemas import UserCreate, UserPublic, UserUpdate
from features.users.tables import EventKind, Role, User
from shared.db import Database, ReadSession
from shared.problems import Conflict, Unauthorized

PUBLIC = sqlalchemy.select(*(getattr(User, name) for name in UserPublic.model_fields))
"""Selects the public columns."""

ONE = PUBLIC.where(col(User.id) == bindparam("id"))
KNOWN = sqlalchemy.select(col(User.id)).where(col(User.email) == bindparam("email"))
NO_KEY_UPDATE = {"key_share": True}  # SELECT … FOR NO KEY UPDATE


async def register(
    database: Database, passwords: Passwords, links: Links, new: UserCreate, caller: Caller
) -> User:
    """Creates an account, and mails it a token that verifies its address.

    A taken email violates `uq_users_email`. No connection is held while the password is hashed.
    """
    password_hash = await passwords.hash(new.password)
    async with database.orm_transaction() as session:
        user = await add_user(session, new.email, password_hash, new.name)
        await record(session, EventKind.REGISTERED, user.id, caller)
        await send_verification(session, links, user)
        return user


async def add_user(
    session: AsyncSession,
    email: str,
    password_hash: str | None,
    name: str | None = None,
    *,
    verified: bool = False,
    role: Role = Role.USER,
) -> User:
    user = User(
        email=email, name=name, password_hash=password_hash, email_verified=verified, role=role
    )
    session.add(user)
    await session.flush()
    return user


async def find_user_id(session: ReadSession, email: str) -> UUID | None:
    """Returns the id of the account with this email, in any spelling."""
    row = await session.fetch_one(KNOWN, {"email": normal_email(email)})
    return row.id if row else None


async def find_user(session: AsyncSession, user_id: UUID, *, lock: bool = False) -> User | None:
    """Returns the account with this id, or None; `lock` takes a row lock.

    The lock is FOR NO KEY UPDATE: FOR UPDATE would block the foreign-key check of an insert. A
    request that has deleted a session and inserts an event would then deadlock with one that has
    locked the account and deletes its sessions.
    """
    return await session.get(User, user_id, with_for_update=NO_KEY_UPDATE if lock else None)


async def read_user(session: ReadSession, user_id: UUID) -> UserPublic:
    """Returns the public columns of the account.

    Raises:
        Unauthorized: the account was deleted after the token was issued.
    """
    row = await session.fetch_one(ONE, {"id": user_id})
    if row is None:
        raise Unauthorized("User not found")
    return UserPublic.model_validate(row)


async def get_user(session: AsyncSession, user_id: UUID, *, lock: bool = False) -> User:
    """Returns the account.

    Raises:
        Unauthorized: the account was deleted after the token was issued.
    """
    user = await find_user(session, user_id, lock=lock)
    if user is None:
        raise Unauthorized("User not found")
    return user


async def update_user(session: AsyncSession, user_id: UUID, changes: UserUpdate) -> User:
    user = await get_user(session, user_id, lock=True)
    user.sqlmodel_update(changes.model_dump(exclude_unset=True))
    await session.flush()
    return user


async def delete_user(session: AsyncSession, user_id: UUID, actor_id: UUID, caller: Caller) -> None:
    """Deletes the account and, by cascading foreign keys, everything it owns.

    One event stays: the id, who deleted it, and the address if that was an administrator.

    Raises:
        Unauthorized: the account was deleted already.
        Conflict: the account is the last administrator.
    """
    await keep_an_administrator(session, user_id)
    user = await get_user(session, user_id, lock=True)
    await end_sessions(session, user_id)
    await session.delete(user)
    seen = caller if actor_id != user_id else Caller("", "")
    await record(session, EventKind.DELETED, None, seen, str(user_id), actor_id=actor_id)


async def keep_an_administrator(session: AsyncSession, leaving: UUID) -> None:
    """Locks the active administrators, so that two of them cannot leave at the same time.

    Raises:
        Conflict: this account is the last active administrator.
    """
    admins = (
        select(User.id)
        .where(User.role == Role.ADMIN, col(User.is_active))
        .order_by(col(User.id))
        .with_for_update(key_share=True)
    )
    if list((await session.exec(admins)).all()) == [leaving]:
        raise Conflict("This is the last administrator: make somebody else one first")
