from uuid import UUID

from fastapi import status

from features.users.handlers import sessions
from features.users.router.identity import AnyPerson, Person
from features.users.schemas import SessionList, SessionPublic
from features.users.state import CallerDep
from shared.db import OrmSession
from shared.problems import NotFound, responses
from shared.web.routing import Router

router = Router(prefix="/auth", tags=["sessions"])


@router.post("/logout", status_code=status.HTTP_204_NO_CONTENT, responses=responses(NotFound))
async def logout(person: AnyPerson, session: OrmSession, caller: CallerDep) -> None:
    """Ends the session that asks: its access token and its refresh tokens, everywhere."""
    await sessions.end_session(session, person.user_id, person.session_id, caller)


@router.get("/sessions")
async def list_(person: Person, session: OrmSession) -> SessionList:
    """Where the account is signed in, the last used first."""
    found = await sessions.list_sessions(session, person.user_id)
    items = [SessionPublic.model_validate(row) for row in found]
    for item in items:
        item.current = item.id == person.session_id
    return SessionList(items=items)


@router.delete("/sessions", status_code=status.HTTP_204_NO_CONTENT)
async def delete_all(person: Person, session: OrmSession, caller: CallerDep) -> None:
    """Ends all sessions but the one that asks."""
    await sessions.end_other_sessions(session, person.user_id, person.session_id, caller)


@router.delete(
    "/sessions/{session_id:uuid}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=responses(NotFound),
)
async def delete(session_id: UUID, person: Person, session: OrmSession, caller: CallerDep) -> None:
    """Ends one session."""
    await sessions.end_session(session, person.user_id, session_id, caller)
