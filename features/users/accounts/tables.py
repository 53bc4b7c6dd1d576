"""Accounts."""

from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, text
from sqlmodel import Field, String

from shared.db.tables import Timestamped, uuid7


class Role(StrEnum):
    USER = "user"
    ADMIN = "admin"


class User(Timestamped, table=True):
    """An account. The email is stored in lower case, so that it is unique in any case.

    An account that has only signed in at an OpenID provider has no password.
    """

    __tablename__ = "users"
    __table_args__ = (CheckConstraint("role IN ('user', 'admin')", name="role_known"),)

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    email: str = Field(unique=True)
    email_verified: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    name: str | None = None
    password_hash: str | None = None
    role: Role = Field(
        default=Role.USER, sa_type=String, sa_column_kwargs={"server_default": Role.USER.value}
    )
    is_active: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})
