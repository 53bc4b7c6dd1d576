"""Sessions of accounts."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import LargeBinary, func
from sqlmodel import Field, SQLModel

from shared.db.tables import uuid7


class Session(SQLModel, table=True):
    """A sign-in on one device, which its family of refresh tokens continues.

    `scope` limits what the session may do, if the client asked for fewer scopes than the account
    has. `authenticated_at` is when its person proved who they are: with a password here, or at a
    provider, if that says when. `family_hash` is the hash of its family's id, None if an earlier
    version opened it, of which no token is valid any longer.
    """

    __tablename__ = "sessions"

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    user_id: UUID = Field(foreign_key="users.id", ondelete="CASCADE", index=True)
    family_hash: bytes | None = Field(default=None, sa_type=LargeBinary, index=True, unique=True)
    scope: str | None = None
    address: str
    user_agent: str
    created_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
    authenticated_at: datetime | None = None
    last_used_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
    expires_at: datetime = Field(index=True)
