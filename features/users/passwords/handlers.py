"""Passwords: change with the current one, reset by mail."""

from uuid import UUID

from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.accounts.handlers import find_user, find_user_by_email, get_user
from features.users.accounts.tables import User
from features.users.api_keys.tables import ApiKey
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import EventKind
from features.users.mail.outbox import Outbox
from features.users.mail.tokens import MailTokens
from features.users.passwords.hashing import PasswordHasher, fingerprint
from features.users.passwords.tables import AccessEnd, ResetRequest
from features.users.sessions.handlers import revoke_sessions
from features.users.single_sign_on.tables import Identity
from shared.db import Database, write_session_of
from shared.problems import BadRequest, Conflict, Forbidden

RESET_CHANNEL = "reset_requests"
RESET_BATCH_SIZE = 20


async def change_password(
    database: Database,
    hasher: PasswordHasher,
    outbox: Outbox,
    user_id: UUID,
    session_id: UUID,
    current: str,
    new: str,
    client: ClientInfo,
) -> None:
    """Changes the password, and ends every other session.

    Raises:
        Forbidden: the current password is wrong.
        Conflict: the account has no password, or the password was changed concurrently.
    """
    async with database.orm_transaction() as session:
        current_hash = (await get_user(session, user_id)).password_hash
    if current_hash is None:
        raise Conflict("The account has no password yet: a reset sets the first one")
    matches, _ = await hasher.verify(current, current_hash)
    if not matches:
        async with database.orm_transaction() as session:
            await record(session, EventKind.PASSWORD_CHANGE_FAILED, user_id, client)
        raise Forbidden("The current password is wrong")
    new_hash = await hasher.hash(new)
    async with database.orm_transaction() as session:
        user = await get_user(session, user_id, lock=True)
        if user.password_hash != current_hash:
            raise Conflict("The password was changed in the meantime")
        user.password_hash = new_hash
        await revoke_sessions(session, user_id, except_id=session_id)
        await record(session, EventKind.PASSWORD_CHANGED, user_id, client)
        await outbox.add_password_changed(session, user.email)


async def request_password_reset(session: AsyncSession, email: str, client: ClientInfo) -> None:
    """Inserts a request to reset the password, whether or not the account exists.

    `mail_reset_tokens` looks the account up later, so that the response time reveals nothing.
    """
    session.add(ResetRequest(email=email, address=client.address, user_agent=client.user_agent))
    write_session_of(session).notify(RESET_CHANNEL)


async def mail_reset_tokens(session: AsyncSession, outbox: Outbox) -> int:
    """Mails reset tokens for a batch of requests, and returns the number of requests."""
    select_waiting = (
        select(ResetRequest)
        .order_by(col(ResetRequest.id))
        .limit(RESET_BATCH_SIZE)
        .with_for_update(skip_locked=True)
    )
    requests = (await session.exec(select_waiting)).all()
    access_end = await _lock_access_end(session)
    for request in requests:
        await session.delete(request)
        user = await find_user_by_email(session, request.email)
        if user and user.is_active:
            password_fingerprint = fingerprint(user.password_hash, access_end)
            await outbox.add_password_reset(session, user.id, user.email, password_fingerprint)
            client = ClientInfo(request.address, request.user_agent)
            await record(session, EventKind.PASSWORD_RESET_REQUESTED, user.id, client)
    return len(requests)


async def reset_password(
    database: Database,
    hasher: PasswordHasher,
    outbox: Outbox,
    mail_tokens: MailTokens,
    token: str,
    new: str,
    client: ClientInfo,
    *,
    keep_api_keys: bool,
) -> None:
    """Sets the password, and ends every other way in.

    The token came by mail, so this verifies the address too.

    Raises:
        BadRequest: the token is not valid, has expired, or was used.
    """
    user_id, password_fingerprint = mail_tokens.read_reset(token)
    new_hash = await hasher.hash(new)
    async with database.orm_transaction() as session:
        user = await find_user(session, user_id, lock=True)
        access_end = await _lock_access_end(session)
        if (
            user is None
            or not user.is_active
            or fingerprint(user.password_hash, access_end) != password_fingerprint
        ):
            raise BadRequest("This reset token is not valid, or no longer")
        await claim_account(session, user, new_hash, keep_api_keys=keep_api_keys)
        await record(session, EventKind.PASSWORD_RESET, user_id, client)
        await outbox.add_password_changed(session, user.email)


async def end_reset_tokens(session: AsyncSession) -> None:
    """Ends the reset tokens of all accounts, also those that wait in a mail. It waits for the
    resets that have begun: none with such a token is committed later."""
    await session.exec(delete(AccessEnd))
    session.add(AccessEnd())


async def _lock_access_end(session: AsyncSession) -> UUID | None:
    """Returns what reset tokens are bound to, and keeps it until the COMMIT."""
    locked = select(AccessEnd.id).with_for_update(read=True, key_share=True)
    return (await session.exec(locked)).one_or_none()


async def claim_account(
    session: AsyncSession, user: User, password_hash: str, *, keep_api_keys: bool = False
) -> None:
    """Sets the password for the owner of the address, and ends every other way in: sessions,
    identities and API keys.

    An intruder may have had the old password, and made them. If the address was not verified,
    API keys are not kept: it may have been registered by an attacker.
    """
    if not (keep_api_keys and user.email_verified):
        await session.exec(delete(ApiKey).where(col(ApiKey.user_id) == user.id))
    await session.exec(delete(Identity).where(col(Identity.user_id) == user.id))
    user.password_hash, user.email_verified = password_hash, True
    await revoke_sessions(session, user.id)
