from typing import Annotated

from fastapi import APIRouter, Query

from features.users.dependencies import CurrentPrincipal
from features.users.events.handlers import list_events
from features.users.events.schemas import EventPage, EventQuery
from shared.db import ReadSession
from shared.web.pagination import Pages

router = APIRouter(prefix="/users/me/events", tags=["events"])


@router.get("")
async def list_(
    principal: CurrentPrincipal,
    query: Annotated[EventQuery, Query()],
    session: ReadSession,
    pages: Pages,
) -> EventPage:
    """What happened to your account, and from where."""
    page = await list_events(session, pages, principal.user_id, query)
    return EventPage.model_validate(page)
