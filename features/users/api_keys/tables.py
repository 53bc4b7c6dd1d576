"""API keys."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import LargeBinary, UniqueConstraint, func
from sqlmodel import Field, SQLModel

from shared.db.tables import uuid7


class ApiKey(SQLModel, table=True):
    """An API key by its hash. `hint` is the beginning of the key, which may be shown."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("hash"),)

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    user_id: UUID = Field(foreign_key="users.id", ondelete="CASCADE", index=True)
    name: str
    hash: bytes = Field(sa_type=LargeBinary)
    hint: str
    scope: str
    created_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
