"""Audit log of accounts: an event is written in the transaction of the change it records."""

from uuid import UUID

from sqlalchemy import bindparam, case, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access import Caller
from features.users.schemas import EventPublic, EventQuery
from features.users.tables import Event, EventKind
from shared.db import ReadSession
from shared.web.pagination import CursorPosition, ListQuery, PageRows, fetch_page

PRIVATE = ("address", "user_agent")  # hidden if an administrator did it
OWN = col(Event.actor_id).is_(None)
PUBLIC = select(
    *(getattr(Event, name) for name in EventPublic.model_fields if name not in PRIVATE),
    *(case((OWN, getattr(Event, name))).label(name) for name in PRIVATE),
)
EVENTS = ListQuery(
    PUBLIC.where(col(Event.user_id) == bindparam("user_id")),
    {"kind": col(Event.kind) == bindparam("kind")},
)


async def record(
    session: AsyncSession,
    kind: EventKind,
    user_id: UUID | None,
    caller: Caller,
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
            address=caller.address,
            user_agent=caller.user_agent,
            detail=detail,
        )
    )
    await session.flush()


async def list_events(
    session: ReadSession, user_id: UUID, query: EventQuery, after: CursorPosition | None = None
) -> PageRows:
    """Returns a page of the account's events."""
    return await fetch_page(session, EVENTS, query, after, user_id=user_id)
