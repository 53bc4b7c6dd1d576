"""What the audit log looks like to clients."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from features.users.events.tables import EventKind
from shared.web.pagination import Page, PageQuery, Sort


class EventPublic(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    kind: EventKind
    address: str | None = Field(description="Null where an administrator did it")
    user_agent: str | None
    detail: str | None
    created_at: datetime


class EventSort(Sort):
    """A column to sort by; `-` for descending."""

    CREATED_AT = "created_at"
    CREATED_AT_DESC = "-created_at"


class EventQuery(PageQuery):
    kind: EventKind | None = None
    sort: EventSort = EventSort.CREATED_AT_DESC


class EventPage(Page[EventPublic]):
    """A page of what happened to your account."""
