from typing import Annotated

from fastapi import APIRouter, Query

from features.users.dependencies import CurrentPrincipal
from features.users.events.handlers import list_events
from features.users.events.schemas import EventPage, EventQuery
from shared.db import ReadSession
from shared.problems import BadRequest, responses
from shared.web.pagination import CursorsDep

router = APIRouter(prefix="/users/me/events", tags=["events"])


@router.get("", responses=responses(BadRequest))
async def list_(
    principal: CurrentPrincipal,
    query: Annotated[EventQuery, Query()],
    session: ReadSession,
    cursors: CursorsDep,
) -> EventPage:
    """What happened to your account, and from where."""
    after = cursors.read(query, principal.user_id)
    found = await list_events(session, principal.user_id, query, after)
    return EventPage.model_validate(cursors.page(found, query, principal.user_id))
