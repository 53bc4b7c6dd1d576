from uuid import UUID

from fastapi import APIRouter, status

from features.users.client_info import CurrentClient
from features.users.dependencies import AnySession, CurrentSession
from features.users.sessions import handlers
from features.users.sessions.schemas import SessionList, SessionPublic
from shared.db import OrmSession
from shared.problems import NotFound, responses

router = APIRouter(prefix="/auth", tags=["sessions"])


@router.post("/logout", status_code=status.HTTP_204_NO_CONTENT, responses=responses(NotFound))
async def logout(principal: AnySession, session: OrmSession, client: CurrentClient) -> None:
    """Ends the session that asks: its access token and its refresh tokens, everywhere."""
    await handlers.revoke_session(session, principal.user_id, principal.session_id, client)


@router.get("/sessions")
async def list_(principal: CurrentSession, session: OrmSession) -> SessionList:
    """Where the account is signed in, the last used first."""
    found = await handlers.list_sessions(session, principal.user_id)
    items = [SessionPublic.model_validate(row) for row in found]
    for item in items:
        item.current = item.id == principal.session_id
    return SessionList(items=items)


@router.delete("/sessions", status_code=status.HTTP_204_NO_CONTENT)
async def delete_all(principal: CurrentSession, session: OrmSession, client: CurrentClient) -> None:
    """Ends all sessions but the one that asks."""
    await handlers.revoke_other_sessions(session, principal.user_id, principal.session_id, client)


@router.delete(
    "/sessions/{session_id:uuid}",
    status_code=status.HTTP_204_NO_CONTENT,
)
async def delete(
    session_id: UUID, principal: CurrentSession, session: OrmSession, client: CurrentClient
) -> None:
    """Ends one session."""
    await handlers.revoke_session(session, principal.user_id, session_id, client)
