from typing import Any
from uuid import UUID

from fastapi import APIRouter, status

from features.users.api_keys import handlers
from features.users.api_keys.schemas import ApiKeyCreate, ApiKeyCreated, ApiKeyList, ApiKeyPublic
from features.users.api_keys.tables import ApiKey
from features.users.client_info import CurrentClient
from features.users.dependencies import CurrentSession, StateDep
from features.users.permissions import parse_scope
from shared.db import OrmSession
from shared.problems import Conflict, NotFound, responses

router = APIRouter(prefix="/users/me/api-keys", tags=["api_keys"])


@router.post("", status_code=status.HTTP_201_CREATED, responses=responses(Conflict))
async def create(
    new: ApiKeyCreate,
    state: StateDep,
    principal: CurrentSession,
    session: OrmSession,
    client: CurrentClient,
) -> ApiKeyCreated:
    """Makes a key for a machine. The key itself is in this answer, and nowhere else.

    It takes a sign-in of the last 10 minutes, and has at most the scopes of the session; the owner
    gets a mail."""
    row, key = await handlers.create_api_key(session, state.outbox, principal, new, client)
    return ApiKeyCreated.model_validate(_public(row) | {"key": key})


@router.get("")
async def list_(principal: CurrentSession, session: OrmSession) -> ApiKeyList:
    """Your keys, the newest first."""
    rows = await handlers.list_api_keys(session, principal.user_id)
    return ApiKeyList(items=[ApiKeyPublic.model_validate(_public(row)) for row in rows])


@router.delete(
    "/{key_id:uuid}", status_code=status.HTTP_204_NO_CONTENT, responses=responses(NotFound)
)
async def delete(
    key_id: UUID, principal: CurrentSession, session: OrmSession, client: CurrentClient
) -> None:
    """Deletes a key: it is refused everywhere within a second."""
    await handlers.delete_api_key(session, principal.user_id, key_id, client)


def _public(row: ApiKey) -> dict[str, Any]:
    return row.model_dump(exclude={"hash"}) | {"scopes": sorted(parse_scope(row.scope))}
