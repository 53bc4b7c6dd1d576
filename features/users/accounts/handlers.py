"""Accounts: register, verify the email address, find, update."""

from uuid import UUID

import sqlalchemy
from sqlalchemy import bindparam
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.accounts.email_addresses import normalize_email
from features.users.accounts.schemas import UserCreate, UserPublic, UserUpdate
from features.users.accounts.tables import IS_NOT_DELETED, Role, User
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import EventKind
from features.users.mail.outbox import Outbox
from features.users.mail.tokens import MailTokens
from features.users.passwords.hashing import PasswordHasher
from shared.db import Database, ReadSession
from shared.problems import BadRequest, Conflict, Unauthorized

SELECT_USERS = sqlalchemy.select(*(getattr(User, name) for name in UserPublic.model_fields)).where(
    IS_NOT_DELETED
)
SELECT_USER = SELECT_USERS.where(col(User.id) == bindparam("id"))
SELECT_USER_ID = sqlalchemy.select(col(User.id)).where(
    col(User.email) == bindparam("email"), IS_NOT_DELETED
)
NO_KEY_UPDATE = {"key_share": True}  # SELECT … FOR NO KEY UPDATE


async def register(
    database: Database, hasher: PasswordHasher, outbox: Outbox, new: UserCreate, client: ClientInfo
) -> User:
    """Creates an account, and mails it a token that verifies its address.

    A taken email violates `uq_users_email`. No connection is held while the password is hashed.
    """
    password_hash = await hasher.hash(new.password)
    async with database.orm_transaction() as session:
        user = await add_user(session, new.email, password_hash, new.name)
        await record(session, EventKind.REGISTERED, user.id, client)
        await send_verification(session, outbox, user)
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


async def send_verification(session: AsyncSession, outbox: Outbox, user: User) -> None:
    """Mails a token that verifies the address, unless it is verified already."""
    if not user.email_verified:
        await outbox.add_verification(session, user.id, user.email)


async def verify_email(
    session: AsyncSession, mail_tokens: MailTokens, token: str, client: ClientInfo
) -> None:
    """Verifies the address of the account.

    Raises:
        BadRequest: the token is not valid, or is for an address that the account no longer has.
    """
    user_id, email = mail_tokens.read_verification(token)
    user = await find_user(session, user_id, lock=True)
    if user is None or user.email != email:
        raise BadRequest("This verification token is not valid, or no longer")
    if not user.email_verified:
        user.email_verified = True
        await record(session, EventKind.EMAIL_VERIFIED, user.id, client)


async def find_user_id(session: ReadSession, email: str) -> UUID | None:
    """Returns the id of the account with this email, in any spelling."""
    row = await session.fetch_one(SELECT_USER_ID, {"email": normalize_email(email)})
    return row.id if row else None


async def find_user(session: AsyncSession, user_id: UUID, *, lock: bool = False) -> User | None:
    """Returns the account with this id, or None; `lock` takes a row lock.

    FOR NO KEY UPDATE: FOR UPDATE would block the foreign-key check of an insert. A request that
    has deleted a session and inserts an event would then deadlock with one that has locked the
    account and deletes its sessions.
    """
    user = await session.get(User, user_id, with_for_update=NO_KEY_UPDATE if lock else None)
    return None if user is None or user.deleted_at else user


async def find_user_by_email(
    session: AsyncSession, email: str, *, lock: bool = False
) -> User | None:
    """Returns the account with this email in its normal form, or None; locks as `find_user`."""
    same_email = select(User).where(User.email == email, IS_NOT_DELETED)
    if lock:
        same_email = same_email.with_for_update(key_share=True)
    return (await session.exec(same_email)).one_or_none()


async def get_user(session: AsyncSession, user_id: UUID, *, lock: bool = False) -> User:
    """Returns the account.

    Raises:
        Unauthorized: the account was deleted after the token was issued.
    """
    user = await find_user(session, user_id, lock=lock)
    if user is None:
        raise Unauthorized("User not found")
    return user


async def read_user(session: ReadSession, user_id: UUID) -> UserPublic:
    """Returns the public columns of the account.

    Raises:
        Unauthorized: the account was deleted after the token was issued.
    """
    row = await session.fetch_one(SELECT_USER, {"id": user_id})
    if row is None:
        raise Unauthorized("User not found")
    return UserPublic.model_validate(row)


async def update_user(session: AsyncSession, user_id: UUID, changes: UserUpdate) -> User:
    user = await get_user(session, user_id, lock=True)
    user.sqlmodel_update(changes.model_dump(exclude_unset=True))
    await session.flush()
    return user


async def require_another_admin(session: AsyncSession, user_id: UUID) -> None:
    """Locks the active administrators, so that two of them cannot leave at the same time.

    Raises:
        Conflict: this account is the last active administrator.
    """
    admins = (
        select(User.id)
        .where(User.role == Role.ADMIN, col(User.is_active), IS_NOT_DELETED)
        .order_by(col(User.id))
        .with_for_update(key_share=True)
    )
    if list((await session.exec(admins)).all()) == [user_id]:
        raise Conflict("This is the last administrator: make somebody else one first")
