"""Audit log of accounts."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Index, func
from sqlmodel import Field, SQLModel, String

from shared.db.tables import uuid7


class EventKind(StrEnum):
    REGISTERED = "registered"
    SIGNED_IN = "signed_in"
    SIGN_IN_FAILED = "sign_in_failed"
    SIGNED_OUT = "signed_out"
    REFRESH_REPLAYED = "refresh_replayed"
    PASSWORD_CHANGED = "password_changed"
    PASSWORD_CHANGE_FAILED = "password_change_failed"
    PASSWORD_RESET_REQUESTED = "password_reset_requested"
    PASSWORD_RESET = "password_reset"
    EMAIL_VERIFIED = "email_verified"
    API_KEY_CREATED = "api_key_created"
    API_KEY_DELETED = "api_key_deleted"
    IDENTITY_LINKED = "identity_linked"
    IDENTITY_UNLINKED = "identity_unlinked"
    ROLE_CHANGED = "role_changed"
    ACTIVATED = "activated"
    DEACTIVATED = "deactivated"
    DELETED = "deleted"


class Event(SQLModel, table=True):
    """What happened to an account, and from which client.

    `user_id` is null for a failed sign-in with an unknown email, and for a deletion.

    `actor_id` is set if an administrator did it; `address` is then the administrator's. It is not
    a foreign key, so that the event outlives the administrator's account.
    """

    __tablename__ = "account_events"
    __table_args__ = (Index("ix_account_events_user_id", "user_id", "created_at", "id"),)

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    user_id: UUID | None = Field(default=None, foreign_key="users.id", ondelete="CASCADE")
    actor_id: UUID | None = None
    kind: EventKind = Field(sa_type=String)
    address: str
    user_agent: str
    detail: str | None = None
    created_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
