from typing import Annotated
from uuid import UUID

from fastapi import status

from features.users.handlers import administration
from features.users.router.identity import Admin, AdminPerson
from features.users.schemas import UserAdminUpdate, UserPage, UserPublic, UserQuery
from features.users.state import CallerDep
from shared.db import OrmSession, ReadSession
from shared.problems import BadRequest, Conflict, NotFound, responses
from shared.web.pagination import CursorsDep
from shared.web.routing import Router, from_query

router = Router(prefix="/users", tags=["users"])


@router.get("", responses=responses(BadRequest))
async def list_(
    admin: Admin,
    query: Annotated[UserQuery, from_query(UserQuery)],
    session: ReadSession,
    cursors: CursorsDep,
) -> UserPage:
    """All accounts, a page at a time."""
    found = await administration.list_users(session, query, cursors.read(query, admin.user_id))
    return UserPage.model_validate(cursors.page(found, query, admin.user_id))


@router.get("/{user_id:uuid}", responses=responses(NotFound))
async def get(user_id: UUID, admin: Admin, session: OrmSession) -> UserPublic:
    """One account."""
    return UserPublic.model_validate(await administration.get_account(session, user_id))


@router.patch("/{user_id:uuid}", responses=responses(NotFound, Conflict))
async def update(
    user_id: UUID,
    changes: UserAdminUpdate,
    admin: AdminPerson,
    session: OrmSession,
    caller: CallerDep,
) -> UserPublic:
    """Changes an account. A change of role, and deactivation, end its sessions."""
    user = await administration.update_account(session, user_id, changes, admin.user_id, caller)
    return UserPublic.model_validate(user)


@router.delete(
    "/{user_id:uuid}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(NotFound, Conflict),
)
async def delete(user_id: UUID, admin: AdminPerson, session: OrmSession, caller: CallerDep) -> None:
    """Deletes an account, and everything it owns."""
    await administration.delete_account(session, user_id, admin.user_id, caller)
