from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, status

from features.users.accounts.schemas import UserPublic
from features.users.administration import handlers
from features.users.administration.schemas import UserAdminUpdate, UserPage, UserQuery
from features.users.client_info import CurrentClient
from features.users.dependencies import AdminPrincipal, AdminSession, StateDep
from shared.db import OrmSession, ReadSession
from shared.problems import Conflict, responses
from shared.web.pagination import Pages

router = APIRouter(prefix="/users", tags=["users"])


@router.get("")
async def list_(
    admin: AdminPrincipal,
    query: Annotated[UserQuery, Query()],
    session: ReadSession,
    pages: Pages,
) -> UserPage:
    """All accounts, a page at a time."""
    return UserPage.model_validate(await handlers.list_users(session, pages, query))


@router.get("/{user_id:uuid}")
async def get(user_id: UUID, admin: AdminPrincipal, session: OrmSession) -> UserPublic:
    """One account."""
    return UserPublic.model_validate(await handlers.get_account(session, user_id))


@router.patch("/{user_id:uuid}", responses=responses(Conflict))
async def update(
    user_id: UUID,
    changes: UserAdminUpdate,
    state: StateDep,
    admin: AdminSession,
    session: OrmSession,
    client: CurrentClient,
) -> UserPublic:
    """Changes an account. A change of role, and deactivation, end its sessions.

    To activate an account, or to make it an administrator's, takes a sign-in of the last 10 minutes
    with all scopes; its owner gets a mail."""
    user = await handlers.change_account(
        session, state.permissions, state.outbox, user_id, changes, admin, client
    )
    return UserPublic.model_validate(user)


@router.delete(
    "/{user_id:uuid}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(Conflict),
)
async def delete(
    user_id: UUID, admin: AdminSession, session: OrmSession, client: CurrentClient
) -> None:
    """Deletes an account, and everything it owns.

    From this answer on nothing of it can be read, and its address is free; its rows are
    deleted in the background."""
    await handlers.delete_account(session, user_id, admin.user_id, client)
