"""Audit log of accounts: an event is written in the transaction of the change it records."""

from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, case, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.client_info import ClientInfo
from features.users.events.schemas import EventPublic, EventQuery
from features.users.events.tables import Event, EventKind
from shared.db import ReadSession
from shared.web.pagination import ListQuery, Pages

CLIENT_COLUMNS = ("address", "user_agent")  # of an administrator, if one did it: then hidden
IS_OWN = col(Event.actor_id).is_(None)
SELECT_EVENTS = select(
    *(getattr(Event, name) for name in EventPublic.model_fields if name not in CLIENT_COLUMNS),
    *(case((IS_OWN, getattr(Event, name))).label(name) for name in CLIENT_COLUMNS),
)
EVENT_LIST = ListQuery(
    "events",
    SELECT_EVENTS.where(col(Event.user_id) == bindparam("user_id")),
    {"kind": col(Event.kind) == bindparam("kind")},
)


async def record(
    session: AsyncSession,
    kind: EventKind,
    user_id: UUID | None,
    client: ClientInfo,
    detail: str | None = None,
    *,
    actor_id: UUID | None = None,
) -> None:
    """Inserts an event. `actor_id` is the account that did it, if that is another one."""
    session.add(
        Event(
            kind=kind,
            user_id=user_id,
            actor_id=actor_id if actor_id != user_id else None,
            address=client.address,
            user_agent=client.user_agent,
            detail=detail,
        )
    )
    await session.flush()


async def list_events(
    session: ReadSession, pages: Pages, user_id: UUID, query: EventQuery
) -> dict[str, Any]:
    """Returns a page of the account's events."""
    return await pages.fetch(session, EVENT_LIST, query, user_id=user_id)
