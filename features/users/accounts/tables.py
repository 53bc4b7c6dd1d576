"""Accounts."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, text
from sqlmodel import Field, String, col

from shared.db.tables import Timestamped, uuid7


class Role(StrEnum):
    USER = "user"
    ADMIN = "admin"


class User(Timestamped, table=True):
    """An account. The email is stored in lower case, so that it is unique in any case.

    An account that has only signed in at an OpenID provider has no password. One with `deleted_at`
    is deleted: no query finds it, and a task removes the row once nothing else of it is left
    (deletion.py).
    """

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("role IN ('user', 'admin')", name="role_known"),
        # Partial, so that no foreign key can refer to it: else to free the address of a deleted
        # account would wait for each transaction that adds rows to the account.
        Index("uq_users_email", "email", unique=True, postgresql_where=text("deleted_at IS NULL")),
        Index("ix_users_deleted_at", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    email: str
    email_verified: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    name: str | None = None
    password_hash: str | None = None
    role: Role = Field(
        default=Role.USER, sa_type=String, sa_column_kwargs={"server_default": Role.USER.value}
    )
    is_active: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})
    deleted_at: datetime | None = None


IS_NOT_DELETED = col(User.deleted_at).is_(None)
