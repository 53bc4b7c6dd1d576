"""What happened to an account: written with what happened, in one transaction."""

from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access import Caller
from features.users.schemas import EventPublic, EventQuery
from features.users.tables import Event, EventKind
from shared.pagination import Keyset, Listing, Rows, fetch_page

PUBLIC = select(*(getattr(Event, name) for name in EventPublic.model_fields))
EVENTS = Listing(
    PUBLIC.where(col(Event.user_id) == bindparam("user_id")),
    {"kind": col(Event.kind) == bindparam("kind")},
)


async def record(
    session: AsyncSession,
    kind: EventKind,
    user_id: UUID | None,
    caller: Caller,
    detail: str | None = None,
) -> None:
    session.add(
        Event(
            kind=kind,
            user_id=user_id,
            address=caller.address,
            user_agent=caller.user_agent,
            detail=detail,
        )
    )
    await session.flush()


async def list_events(
    session: AsyncConnection, user_id: UUID, query: EventQuery, after: Keyset | None = None
) -> Rows:
    """A page of what happened to an account."""
    return await fetch_page(session, EVENTS, query, after, user_id=user_id)
