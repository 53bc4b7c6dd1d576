from typing import Any
from uuid import UUID

from fastapi import status

from features.users.access import read_scope
from features.users.handlers import api_keys
from features.users.router.identity import Person
from features.users.schemas import ApiKeyCreate, ApiKeyCreated, ApiKeyList, ApiKeyPublic
from features.users.state import CallerDep
from features.users.tables import ApiKey
from shared.db import OrmSession
from shared.problems import Conflict, NotFound, responses
from shared.web.routing import Router

router = Router(prefix="/users/me/api-keys", tags=["api_keys"])


@router.post("", status_code=status.HTTP_201_CREATED, responses=responses(Conflict))
async def create(
    new: ApiKeyCreate, person: Person, session: OrmSession, caller: CallerDep
) -> ApiKeyCreated:
    """Makes a key for a machine. The key itself is in this answer, and nowhere else."""
    row, key = await api_keys.create_api_key(
        session, person.user_id, person.session_id, person.scopes, new, caller
    )
    return ApiKeyCreated.model_validate(_public(row) | {"key": key})


@router.get("")
async def list_(person: Person, session: OrmSession) -> ApiKeyList:
    """Your keys, the newest first."""
    rows = await api_keys.list_api_keys(session, person.user_id)
    return ApiKeyList(items=[ApiKeyPublic.model_validate(_public(row)) for row in rows])


@router.delete(
    "/{key_id:uuid}", status_code=status.HTTP_204_NO_CONTENT, responses=responses(NotFound)
)
async def delete(key_id: UUID, person: Person, session: OrmSession, caller: CallerDep) -> None:
    """Deletes a key: it is refused everywhere within a second."""
    await api_keys.delete_api_key(session, person.user_id, key_id, caller)


def _public(row: ApiKey) -> dict[str, Any]:
    return row.model_dump(exclude={"hash"}) | {"scopes": sorted(read_scope(row.scope))}
