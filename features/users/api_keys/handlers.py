"""API keys: create, list, delete."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import delete, func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.accounts.handlers import get_user
from features.users.api_keys.schemas import ApiKeyCreate
from features.users.api_keys.tables import ApiKey
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import EventKind
from features.users.mail.outbox import Outbox
from features.users.opaque_tokens import API_KEY, digest, new_token
from features.users.permissions import format_scope
from features.users.sessions.handlers import SessionPrincipal, require_recent_sign_in
from shared.problems import Conflict, FieldError, NotFound, Unprocessable

MAX_KEYS = 100
HINT_LENGTH = 10


async def create_api_key(
    session: AsyncSession,
    outbox: Outbox,
    principal: SessionPrincipal,
    new: ApiKeyCreate,
    client: ClientInfo,
) -> tuple[ApiKey, str]:
    """Creates a key, and tells the owner by mail. Returns its row and the key itself, which is not
    stored.

    Raises:
        Unprocessable: the session does not have a scope, or `expires_at` is in the past.
        Unauthorized: the session has ended, or its sign-in is not recent.
        Conflict: the account has `MAX_KEYS` keys already.
    """
    _check(new, principal.scopes)
    user_id = principal.user_id
    user = await get_user(session, user_id, lock=True)
    await require_recent_sign_in(session, principal)
    count = select(func.count()).select_from(ApiKey).where(ApiKey.user_id == user_id)
    if (await session.exec(count)).one() >= MAX_KEYS:
        raise Conflict(f"There are {MAX_KEYS} API keys already: delete one first")
    key = new_token(API_KEY)
    row = ApiKey(
        user_id=user_id,
        name=new.name,
        hash=digest(key),
        hint=key[:HINT_LENGTH],
        scope=format_scope(new.scopes),
        expires_at=new.expires_at,
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    await record(session, EventKind.API_KEY_CREATED, user_id, client, new.name)
    await outbox.add_api_key_created(session, user.email)
    return row, key


def _check(new: ApiKeyCreate, allowed: frozenset[str]) -> None:
    errors = [
        FieldError(
            location="body",
            pointer=f"/scopes/{i}",
            detail=f"Should be one of {', '.join(sorted(allowed))}",
        )
        for i, scope in enumerate(new.scopes)
        if scope not in allowed
    ]
    if new.expires_at and new.expires_at <= datetime.now(UTC):
        detail = "Should be in the future"
        errors.append(FieldError(location="body", pointer="/expires_at", detail=detail))
    if errors:
        raise Unprocessable("The key cannot be made like this", errors=errors)


async def list_api_keys(session: AsyncSession, user_id: UUID) -> Sequence[ApiKey]:
    """Returns the keys of the account, newest first."""
    keys = select(ApiKey).where(ApiKey.user_id == user_id).order_by(col(ApiKey.id).desc())
    return (await session.exec(keys)).all()


async def delete_api_key(
    session: AsyncSession, user_id: UUID, key_id: UUID, client: ClientInfo
) -> None:
    """Deletes a key.

    Raises:
        NotFound: the key does not exist, or belongs to another account.
    """
    await get_user(session, user_id, lock=True)
    deleting = delete(ApiKey).where(col(ApiKey.id) == key_id, col(ApiKey.user_id) == user_id)
    name = (await session.exec(deleting.returning(col(ApiKey.name)))).scalar_one_or_none()
    if name is None:
        raise NotFound(f"API key {key_id} not found")
    await record(session, EventKind.API_KEY_DELETED, user_id, client, name)
