"""Identities at OpenID providers."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import UniqueConstraint, func
from sqlmodel import Field, SQLModel

from shared.db.tables import uuid7


class Identity(SQLModel, table=True):
    """A user of an OpenID provider who may sign in to the account."""

    __tablename__ = "identities"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    user_id: UUID = Field(foreign_key="users.id", ondelete="CASCADE", index=True)
    issuer: str
    subject: str
    email: str | None = None
    created_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
