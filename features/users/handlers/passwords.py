"""Passwords: change with the current one, reset by mail."""

from uuid import UUID

from sqlalchemy import delete, func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access import Caller
from features.users.handlers.accounts import find_user, get_user
from features.users.handlers.events import record
from features.users.handlers.sessions import end_sessions
from features.users.links import Links
from features.users.passwords import Passwords, fingerprint
from features.users.tables import ApiKey, EventKind, Identity, ResetRequest, User
from shared.db import Database
from shared.mail import Outbox
from shared.problems import BadRequest, Conflict, Forbidden

RESET_CHANNEL = "reset_requests"
RESET_BATCH = 20
CHANGED = (
    "Your password was changed",
    "The password of your account was changed, and other sessions were ended.\n\n"
    "If it was not you, reset it now.\n",
)


async def change_password(
    database: Database,
    passwords: Passwords,
    outbox: Outbox,
    user_id: UUID,
    session_id: UUID,
    current: str,
    new: str,
    caller: Caller,
) -> None:
    """Changes the password, and ends every other session.

    Raises:
        Forbidden: the current password is wrong.
        Conflict: the account has no password, or the password was changed concurrently.
    """
    async with database.orm_transaction() as session:
        known = (await get_user(session, user_id)).password_hash
    if known is None:
        raise Conflict("The account has no password yet: a reset sets the first one")
    matches, _ = await passwords.verify(current, known)
    if not matches:
        async with database.orm_transaction() as session:
            await record(session, EventKind.PASSWORD_CHANGE_FAILED, user_id, caller)
        raise Forbidden("The current password is wrong")
    password_hash = await passwords.hash(new)
    async with database.orm_transaction() as session:
        user = await get_user(session, user_id, lock=True)
        if user.password_hash != known:
            raise Conflict("The password was changed in the meantime")
        user.password_hash = password_hash
        await end_sessions(session, user_id, but=session_id)
        await record(session, EventKind.PASSWORD_CHANGED, user_id, caller)
        await outbox.put(session, user.email, *CHANGED)


async def request_reset(session: AsyncSession, email: str, caller: Caller) -> None:
    """Inserts a request to reset the password, whether or not the account exists.

    `answer_reset_requests` looks the account up later, so that the response time reveals nothing.
    """
    request = ResetRequest(email=email, address=caller.address, user_agent=caller.user_agent)
    session.add(request)
    await session.exec(select(func.pg_notify(RESET_CHANNEL, "")))


async def answer_reset_requests(session: AsyncSession, links: Links) -> int:
    """Mails reset tokens for a batch of requests, and returns the number of requests."""
    waiting = (
        select(ResetRequest)
        .order_by(col(ResetRequest.id))
        .limit(RESET_BATCH)
        .with_for_update(skip_locked=True)
    )
    requests = (await session.exec(waiting)).all()
    for request in requests:
        await session.delete(request)
        known = select(User).where(User.email == request.email, col(User.is_active))
        if user := (await session.exec(known)).one_or_none():
            mail = links.reset_mail(user.id, fingerprint(user.password_hash))
            await links.outbox.put(session, user.email, *mail)
            caller = Caller(request.address, request.user_agent)
            await record(session, EventKind.PASSWORD_RESET_REQUESTED, user.id, caller)
    return len(requests)


async def reset_password(
    database: Database, passwords: Passwords, links: Links, token: str, new: str, caller: Caller
) -> None:
    """Sets the password, and ends every session.

    The token came by mail, so this verifies the address too.

    Raises:
        BadRequest: the token is not valid, has expired, or was used.
    """
    user_id, bound_to = links.read_reset(token)
    password_hash = await passwords.hash(new)
    async with database.orm_transaction() as session:
        user = await find_user(session, user_id, lock=True)
        if user is None or not user.is_active or fingerprint(user.password_hash) != bound_to:
            raise BadRequest("This reset token is not valid, or no longer")
        await hand_over(session, user, password_hash)
        await record(session, EventKind.PASSWORD_RESET, user_id, caller)
        await links.outbox.put(session, user.email, *CHANGED)


async def hand_over(session: AsyncSession, user: User, password_hash: str) -> None:
    """Sets the password for the owner of the address, and ends every session.

    If the address was not verified, deletes API keys and identities too: they may belong to an
    attacker who registered the address of another person.
    """
    if not user.email_verified:
        await session.exec(delete(ApiKey).where(col(ApiKey.user_id) == user.id))
        await session.exec(delete(Identity).where(col(Identity.user_id) == user.id))
    user.password_hash, user.email_verified = password_hash, True
    await end_sessions(session, user.id)
