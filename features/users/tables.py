"""Accounts, and every way into one. A row that ends access is deleted, and the database
itself tells all processes: see `revocation.py`."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, LargeBinary, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel, String

from shared.tables import Timestamped, new_id


class Role(StrEnum):
    USER = "user"
    ADMIN = "admin"


class User(Timestamped, table=True):
    """An account. The email is kept in lower case, so that it is one whatever its case.

    An account that only ever signed in at a provider has no password.
    """

    __tablename__ = "users"
    __table_args__ = (CheckConstraint("role IN ('user', 'admin')", name="role_known"),)

    id: UUID = Field(default_factory=new_id, primary_key=True)
    email: str = Field(unique=True)
    email_verified: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    name: str | None = None
    password_hash: str | None = None
    role: Role = Field(
        default=Role.USER, sa_type=String, sa_column_kwargs={"server_default": Role.USER.value}
    )
    is_active: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})


class Session(SQLModel, table=True):
    """One login on one device: the family of its refresh tokens, and of its access tokens.

    `scope` narrows what the account may do, if the client asked for less than everything.
    """

    __tablename__ = "sessions"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    user_id: UUID = Field(foreign_key="users.id", ondelete="CASCADE", index=True)
    scope: str | None = None
    address: str
    user_agent: str
    created_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
    last_used_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
    expires_at: datetime = Field(index=True)


class RefreshToken(SQLModel, table=True):
    """A refresh token by its hash. A used one stays, so that a replay is recognised.

    `sealed_successor` is what replaced it, encrypted under the token itself: only who
    presents the token can have it opened.
    """

    __tablename__ = "refresh_tokens"

    hash: bytes = Field(sa_type=LargeBinary, primary_key=True)
    session_id: UUID = Field(foreign_key="sessions.id", ondelete="CASCADE", index=True)
    used_at: datetime | None = Field(default=None, index=True)
    sealed_successor: bytes | None = Field(default=None, sa_type=LargeBinary)


class Revocation(SQLModel, table=True):
    """The id of a session or an account that has ended, for as long as a token may name it.

    Only triggers write here. `transaction` orders rows by what a snapshot can see.
    """

    __tablename__ = "revocations"

    id: UUID = Field(primary_key=True)
    transaction: int = Field(
        sa_type=BigInteger,
        index=True,
        sa_column_kwargs={"server_default": text("((pg_current_xact_id())::text)::bigint")},
    )
    created_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )


class SigningKey(SQLModel, table=True):
    """A key that signs access tokens from `active_at` until the next one's. The private half
    is encrypted under `APP_SECRET_KEY`."""

    __tablename__ = "signing_keys"

    id: str = Field(primary_key=True)
    public_jwk: dict[str, Any] = Field(sa_type=JSONB)
    sealed_private_jwk: bytes = Field(sa_type=LargeBinary)
    active_at: datetime


class ApiKey(SQLModel, table=True):
    """A machine's credential by its hash. `hint` is the part of it that may be shown."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("hash"),)

    id: UUID = Field(default_factory=new_id, primary_key=True)
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


class Identity(SQLModel, table=True):
    """Somebody at an OpenID provider who may sign in to the account."""

    __tablename__ = "identities"
    __table_args__ = (UniqueConstraint("issuer", "subject"),)

    id: UUID = Field(default_factory=new_id, primary_key=True)
    user_id: UUID = Field(foreign_key="users.id", ondelete="CASCADE", index=True)
    issuer: str
    subject: str
    email: str | None = None
    created_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )


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
    """What happened to an account, and from where. A failed sign-in may have no account, and a
    deletion has none any more.

    `actor_id` is who did it, where that was not the account itself: an administrator, whose
    address it then is. It refers to nobody, so that it outlives them.
    """

    __tablename__ = "account_events"
    __table_args__ = (Index("ix_account_events_user_id", "user_id", "created_at", "id"),)

    id: UUID = Field(default_factory=new_id, primary_key=True)
    user_id: UUID | None = Field(default=None, foreign_key="users.id", ondelete="CASCADE")
    actor_id: UUID | None = None
    kind: EventKind = Field(sa_type=String)
    address: str
    user_agent: str
    detail: str | None = None
    created_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )


class ResetRequest(SQLModel, table=True):
    """Somebody forgot a password, or says so: written whether or not the account exists, so
    that both take the same time. A task answers it by mail."""

    __tablename__ = "reset_requests"

    id: UUID = Field(default_factory=new_id, primary_key=True)
    email: str
    address: str
    user_agent: str
