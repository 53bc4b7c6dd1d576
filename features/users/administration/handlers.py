"""Administration of accounts."""

from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, func
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.accounts.deletion import delete_user
from features.users.accounts.email_addresses import normalize_email
from features.users.accounts.handlers import (
    SELECT_USERS,
    find_user,
    require_another_admin,
)
from features.users.accounts.tables import Role, User
from features.users.administration.schemas import UserAdminUpdate, UserQuery
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import EventKind
from features.users.mail.outbox import Outbox
from features.users.permissions import Permissions
from features.users.sessions.handlers import SessionPrincipal, require_recent_sign_in
from shared.db import ReadSession
from shared.problems import NotFound
from shared.web.pagination import ListQuery, Pages

LOWER_Q = func.lower(bindparam("q"))
USER_LIST = ListQuery(
    "users",
    SELECT_USERS,
    {
        "q": (func.strpos(User.email, LOWER_Q) > 0)
        | (func.strpos(func.lower(User.name), LOWER_Q) > 0),
        "role": col(User.role) == bindparam("role"),
        "is_active": col(User.is_active) == bindparam("is_active"),
    },
)


async def list_users(session: ReadSession, pages: Pages, query: UserQuery) -> dict[str, Any]:
    """Returns a page of the matching accounts. A full address matches in any spelling."""
    if query.q:
        query = query.model_copy(update={"q": normalize_email(query.q)})
    return await pages.fetch(session, USER_LIST, query)


async def get_account(session: AsyncSession, user_id: UUID, *, lock: bool = False) -> User:
    """Returns the account.

    Raises:
        NotFound: the account does not exist.
    """
    user = await find_user(session, user_id, lock=lock)
    if user is None:
        raise NotFound(f"User {user_id} not found")
    return user


async def update_account(
    session: AsyncSession,
    user_id: UUID,
    changes: UserAdminUpdate,
    actor_id: UUID,
    client: ClientInfo,
) -> User:
    """Updates an account. A change of role and deactivation end its sessions (by a trigger).

    Raises:
        NotFound: the account does not exist.
        Conflict: the change would leave no active administrator.
    """
    given = changes.model_dump(exclude_unset=True)
    if given.get("role") is Role.USER or given.get("is_active") is False:
        await require_another_admin(session, user_id)
    user = await get_account(session, user_id, lock=True)
    old_role, was_active = user.role, user.is_active
    user.sqlmodel_update(given)
    await session.flush()
    if user.role != old_role:
        detail = f"{old_role} → {user.role}"
        await record(session, EventKind.ROLE_CHANGED, user_id, client, detail, actor_id=actor_id)
    if user.is_active != was_active:
        kind = EventKind.ACTIVATED if user.is_active else EventKind.DEACTIVATED
        await record(session, kind, user_id, client, actor_id=actor_id)
    return user


async def change_account(
    session: AsyncSession,
    permissions: Permissions,
    outbox: Outbox,
    user_id: UUID,
    changes: UserAdminUpdate,
    admin: SessionPrincipal,
    client: ClientInfo,
) -> User:
    """Updates an account for an administrator. To grant access takes a recent sign-in with all
    scopes, as the account may then sign in with all of them; its owner gets a mail.

    Raises:
        NotFound: the account does not exist.
        Unauthorized: the administrator's session has ended, or its sign-in is not recent.
        Forbidden: it has fewer scopes than administrators have.
        Conflict: the change would leave no active administrator.
    """
    given = changes.model_dump(exclude_unset=True)
    if given.get("role") is not Role.ADMIN and given.get("is_active") is not True:
        return await update_account(session, user_id, changes, admin.user_id, client)
    permissions.require_all(Role.ADMIN, admin.scopes)
    await require_recent_sign_in(session, admin)
    user = await get_account(session, user_id, lock=True)
    before = (user.role, user.is_active)
    user = await update_account(session, user_id, changes, admin.user_id, client)
    if (user.role, user.is_active) != before:
        await outbox.add_access_granted(session, user.email)
    return user


async def delete_account(
    session: AsyncSession, user_id: UUID, actor_id: UUID, client: ClientInfo
) -> None:
    """Deletes the account, and everything it owns.

    Raises:
        NotFound: the account does not exist.
        Conflict: the account is the last administrator.
    """
    await get_account(session, user_id, lock=True)
    await delete_user(session, user_id, actor_id, client)
