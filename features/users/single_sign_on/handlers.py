"""Sign-in with an OpenID provider.

An account is found by issuer and subject, or else by an email that the provider has verified.
An account whose own address was never verified is not linked by email: an attacker may have
registered the address in advance (pre-hijacking).
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.accounts.handlers import add_user, find_user_by_email, get_user
from features.users.accounts.tables import Role, User
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import EventKind
from features.users.mail.outbox import Outbox
from features.users.permissions import Permissions
from features.users.schemas import MAX_NAME_LENGTH
from features.users.sessions.handlers import (
    Denial,
    Grant,
    SessionPrincipal,
    open_session,
    require_recent_sign_in,
    require_session,
)
from features.users.single_sign_on.provider import VerifiedIdentity
from features.users.single_sign_on.tables import Identity
from shared.problems import Conflict, Forbidden, NotFound


async def sign_in_with(
    session: AsyncSession,
    outbox: Outbox,
    verified: VerifiedIdentity,
    client: ClientInfo,
    lifetime: timedelta,
) -> Grant | Denial:
    """Opens a session for the account of the identity; links or creates an account if needed.

    Raises:
        Forbidden: the provider has not verified the email, or it is not valid.
        Conflict: the account with this email has never verified its address, or the identity was
            unlinked concurrently.
    """
    identity = await _find_identity(session, verified)
    if identity:
        user = await get_user(session, identity.user_id, lock=True)
        if await _find_identity(session, verified) is not identity:
            raise Conflict("This identity was unlinked in the meantime: please sign in again")
    else:
        user, is_new = await _find_or_add_user(session, verified, client)
        await _add_identity(session, user.id, verified, client)
        if not is_new:
            await outbox.add_identity_linked(session, user.email)
    if not user.is_active:
        await record(session, EventKind.SIGN_IN_FAILED, user.id, client, "not active")
        return Denial("invalid_grant", "The account is not active")
    return await open_session(
        session,
        user.id,
        Role(user.role),
        client,
        lifetime,
        authenticated_at=verified.authenticated_at,
    )


async def _find_or_add_user(
    session: AsyncSession, verified: VerifiedIdentity, client: ClientInfo
) -> tuple[User, bool]:
    """Returns the account with the verified email, and whether it is a new one."""
    if verified.email is None:
        raise Forbidden("The provider has not verified your email address, or it is not valid")
    user = await find_user_by_email(session, verified.email, lock=True)
    if user is None:
        name = (verified.name or "")[:MAX_NAME_LENGTH] or None
        user = await add_user(session, verified.email, None, name, verified=True)
        await record(session, EventKind.REGISTERED, user.id, client, verified.issuer)
        return user, True
    if not user.email_verified:
        raise Conflict(
            "There is an account with this email whose address was never verified:"
            " verify it or reset its password, and sign in again"
        )
    return user, False


async def check_may_link(
    session: AsyncSession, permissions: Permissions, principal: SessionPrincipal
) -> None:
    """Checks that the session may begin to link an identity, by which one signs in with all scopes
    of the account.

    Raises:
        Unauthorized: the session has ended, or its sign-in is not recent.
        Forbidden: the session has fewer scopes than its account.
    """
    user = await get_user(session, principal.user_id)
    permissions.require_all(user.role, principal.scopes)
    await require_recent_sign_in(session, principal)


async def link(
    session: AsyncSession,
    outbox: Outbox,
    user_id: UUID,
    session_id: UUID,
    verified: VerifiedIdentity,
    client: ClientInfo,
) -> Identity:
    """Links an identity to the account of the session, and tells the owner by mail.

    Raises:
        Unauthorized: the session has ended.
        Conflict: the identity is linked to another account.
    """
    user = await get_user(session, user_id, lock=True)
    await require_session(session, user_id, session_id)
    identity = await _find_identity(session, verified)
    if identity is None:
        await outbox.add_identity_linked(session, user.email)
        return await _add_identity(session, user_id, verified, client)
    if identity.user_id != user_id:
        raise Conflict("This identity is linked to another account")
    return identity


async def list_identities(session: AsyncSession, user_id: UUID) -> Sequence[Identity]:
    identities = select(Identity).where(Identity.user_id == user_id).order_by(col(Identity.id))
    return (await session.exec(identities)).all()


async def unlink(
    session: AsyncSession, user_id: UUID, identity_id: UUID, client: ClientInfo
) -> None:
    """Unlinks an identity from the account.

    Raises:
        NotFound: the identity does not exist, or belongs to another account.
        Conflict: the account has no password and no other identity.
    """
    user = await get_user(session, user_id, lock=True)
    identities = await list_identities(session, user_id)
    found = next((identity for identity in identities if identity.id == identity_id), None)
    if found is None:
        raise NotFound(f"Identity {identity_id} not found")
    if user.password_hash is None and len(identities) == 1:
        raise Conflict("This is the last way into the account: set a password first")
    await session.delete(found)
    await record(session, EventKind.IDENTITY_UNLINKED, user_id, client, found.issuer)


async def _find_identity(session: AsyncSession, verified: VerifiedIdentity) -> Identity | None:
    identity = select(Identity).where(
        Identity.issuer == verified.issuer, Identity.subject == verified.subject
    )
    return (await session.exec(identity)).one_or_none()


async def _add_identity(
    session: AsyncSession, user_id: UUID, verified: VerifiedIdentity, client: ClientInfo
) -> Identity:
    identity = Identity(
        user_id=user_id, issuer=verified.issuer, subject=verified.subject, email=verified.email
    )
    session.add(identity)
    await session.flush()
    await session.refresh(identity)
    await record(session, EventKind.IDENTITY_LINKED, user_id, client, verified.issuer)
    return identity
