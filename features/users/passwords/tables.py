"""Requests to reset a password, and the end of reset tokens."""

from uuid import UUID

from sqlmodel import Field, SQLModel

from shared.db.tables import uuid7


class ResetRequest(SQLModel, table=True):
    """A request to reset a password.

    It is inserted whether or not the account exists, so that both take the same time. A task mails
    the token later.
    """

    __tablename__ = "reset_requests"

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    email: str
    address: str
    user_agent: str


class AccessEnd(SQLModel, table=True):
    """The last time that the access of all accounts was ended: one row, whose id is another each
    time. Reset tokens are bound to it, so that none of before is valid."""

    __tablename__ = "access_ends"

    id: UUID = Field(default_factory=uuid7, primary_key=True)
