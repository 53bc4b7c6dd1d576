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

from features.users.access import Caller
from features.users.handlers.accounts import add_user, get_user
from features.users.handlers.events import record
from features.users.handlers.sessions import Denial, Grant, open_session, require_session
from features.users.oidc import ProvenIdentity
from features.users.tables import EventKind, Identity, Role, User
from shared.problems import Conflict, Forbidden, NotFound

MAX_NAME = 100


async def sign_in_with(
    session: AsyncSession, proven: ProvenIdentity, caller: Caller, lifetime: timedelta
) -> Grant | Denial:
    """Opens a session for the account of the identity; links or creates an account if needed.

    Raises:
        Forbidden: the provider has not verified the email.
        Conflict: the account with this email has never verified its address, or the identity was
            unlinked concurrently.
    """
    identity = await _find(session, proven)
    if identity:
        user = await get_user(session, identity.user_id, lock=True)
        if await _find(session, proven) is not identity:
            raise Conflict("This identity was unlinked in the meantime: please sign in again")
    else:
        user = await _account_for(session, proven, caller)
        await _add(session, user.id, proven, caller)
    if not user.is_active:
        await record(session, EventKind.SIGN_IN_FAILED, user.id, caller, "not active")
        return Denial("invalid_grant", "The account is not active")
    return await open_session(session, user.id, Role(user.role), caller, lifetime)


async def _account_for(session: AsyncSession, proven: ProvenIdentity, caller: Caller) -> User:
    if proven.email is None:
        raise Forbidden("The provider has not verified your email address")
    known = select(User).where(User.email == proven.email).with_for_update(key_share=True)
    user = (await session.exec(known)).one_or_none()
    if user is None:
        name = (proven.name or "")[:MAX_NAME] or None
        user = await add_user(session, proven.email, None, name, verified=True)
        await record(session, EventKind.REGISTERED, user.id, caller, proven.issuer)
    elif not user.email_verified:
        raise Conflict(
            "There is an account with this email whose address was never verified:"
            " verify it or reset its password, and sign in again"
        )
    return user


async def link(
    session: AsyncSession, user_id: UUID, session_id: UUID, proven: ProvenIdentity, caller: Caller
) -> Identity:
    """Links an identity to the account of the session.

    Raises:
        Unauthorized: the session has ended.
        Conflict: the identity is linked to another account.
    """
    await get_user(session, user_id, lock=True)
    await require_session(session, user_id, session_id)
    identity = await _find(session, proven)
    if identity is None:
        return await _add(session, user_id, proven, caller)
    if identity.user_id != user_id:
        raise Conflict("This identity is linked to another account")
    return identity


async def list_identities(session: AsyncSession, user_id: UUID) -> Sequence[Identity]:
    mine = select(Identity).where(Identity.user_id == user_id).order_by(col(Identity.id))
    return (await session.exec(mine)).all()


async def unlink(session: AsyncSession, user_id: UUID, identity_id: UUID, caller: Caller) -> None:
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
    await record(session, EventKind.IDENTITY_UNLINKED, user_id, caller, found.issuer)


async def _find(session: AsyncSession, proven: ProvenIdentity) -> Identity | None:
    known = select(Identity).where(
        Identity.issuer == proven.issuer, Identity.subject == proven.subject
    )
    return (await session.exec(known)).one_or_none()


async def _add(
    session: AsyncSession, user_id: UUID, proven: ProvenIdentity, caller: Caller
) -> Identity:
    identity = Identity(
        user_id=user_id, issuer=proven.issuer, subject=proven.subject, email=proven.email
    )
    session.add(identity)
    await session.flush()
    await session.refresh(identity)
    await record(session, EventKind.IDENTITY_LINKED, user_id, caller, proven.issuer)
    return identity
