"""Refresh tokens."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel


class RefreshToken(SQLModel, table=True):
    """A refresh token by its hash. A used token is kept for the grace period.

    `encrypted_successor` is the token that replaced it, encrypted under the used token itself: it
    can be decrypted only when a client presents that token.
    """

    __tablename__ = "refresh_tokens"

    hash: bytes = Field(sa_type=LargeBinary, primary_key=True)
    session_id: UUID = Field(foreign_key="sessions.id", ondelete="CASCADE", index=True)
    used_at: datetime | None = None
    encrypted_successor: bytes | None = Field(
        default=None, sa_type=LargeBinary, sa_column_kwargs={"name": "sealed_successor"}
    )
