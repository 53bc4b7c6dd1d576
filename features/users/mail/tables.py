"""Mail that waits to be sent."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import LargeBinary, func, text
from sqlmodel import Field, SQLModel

from shared.db.tables import uuid7


class OutgoingMail(SQLModel, table=True):
    """A mail that has not been sent.

    `next_attempt_at` is by the clock of PostgreSQL, and null for a dead letter. The body is
    encrypted under a key derived from `APP_SECRET_KEY`. The revision `shared_0002` of the kernel's
    branch creates the table.
    """

    __tablename__ = "outgoing_mail"

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    recipient: str
    subject: str
    encrypted_body: bytes = Field(sa_type=LargeBinary, sa_column_kwargs={"name": "sealed_body"})
    attempts: int = Field(default=0, sa_column_kwargs={"server_default": text("0")})
    next_attempt_at: datetime | None = Field(
        default=None, index=True, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
    error: str | None = None
