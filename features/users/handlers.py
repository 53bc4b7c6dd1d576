from uuid import UUID

import anyio
from pwdlib import PasswordHash
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.schemas import UserCreate, UserUpdate
from features.users.tables import User
from shared.errors import Unauthorized

passwords = PasswordHash.recommended()  # argon2id
_unknown_user_hash = passwords.hash("nobody has this password")


async def register(session: AsyncSession, new: UserCreate) -> User:
    """Creates an account. A taken email violates `uq_users_email`."""
    password_hash = await anyio.to_thread.run_sync(passwords.hash, new.password)
    user = User(email=new.email, name=new.name, password_hash=password_hash)
    session.add(user)
    await session.flush()
    await session.refresh(user)
    return user


async def sign_in(session: AsyncConnection, email: str, password: str) -> UUID | None:
    """The account's id, or None. Takes the same time whether or not the account exists."""
    known = select(User.id, User.password_hash).where(User.email == email.lower())
    row = (await session.execute(known)).one_or_none()
    password_hash = row.password_hash if row else _unknown_user_hash
    matches = await anyio.to_thread.run_sync(passwords.verify, password, password_hash)
    return row.id if row and matches else None


async def find_user_id(session: AsyncSession, email: str) -> UUID | None:
    """The id of the account with this email, whatever its case."""
    return (await session.exec(select(User.id).where(User.email == email.lower()))).one_or_none()


async def user_exists(session: AsyncConnection, user_id: UUID) -> bool:
    found = await session.execute(select(User.id).where(User.id == user_id))
    return found.first() is not None


async def get_user(session: AsyncSession, user_id: UUID) -> User:
    """
    Raises:
        Unauthorized: the account is gone, although somebody still holds a token of it.
    """
    user = await session.get(User, user_id)
    if user is None:
        raise Unauthorized("User not found")
    return user


async def update_user(session: AsyncSession, user_id: UUID, changes: UserUpdate) -> User:
    user = await get_user(session, user_id)
    user.sqlmodel_update(changes.model_dump(exclude_unset=True))
    await session.flush()
    await session.refresh(user)
    return user


async def delete_user(session: AsyncSession, user_id: UUID) -> None:
    """Deletes the account and, by the foreign keys of other features, all it owns."""
    await session.delete(await get_user(session, user_id))
