"""Accounts and their credentials.

Access is revoked by deleting a row: a trigger then notifies all processes (see `revocation.py`).
"""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, LargeBinary, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel, String

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


class Session(SQLModel, table=True):
    """One login on one device, with its family of refresh tokens and its access tokens.

    `scope` limits what the session may do, if the client asked for fewer scopes than the account
    has.
    """

    __tablename__ = "sessions"

    id: UUID = Field(default_factory=uuid7, primary_key=True)
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
    """A refresh token by its hash. A used token is kept, so that a replay is detected.

    `sealed_successor` is the token that replaced it, encrypted under the used token itself: it can
    be decrypted only when a client presents that token.
    """

    __tablename__ = "refresh_tokens"

    hash: bytes = Field(sa_type=LargeBinary, primary_key=True)
    session_id: UUID = Field(foreign_key="sessions.id", ondelete="CASCADE", index=True)
    used_at: datetime | None = Field(default=None, index=True)
    sealed_successor: bytes | None = Field(default=None, sa_type=LargeBinary)


class Revocation(SQLModel, table=True):
    """The id of a deleted account, session or API key, kept for as long as a token may name it.

    Only triggers write here. `transaction` is the id of the transaction that deleted the row: a
    poll compares it with its snapshot.
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
    """A key that signs access tokens from `active_at` until the `active_at` of the next key.

    The private key is encrypted under `APP_SECRET_KEY`.
    """

    __tablename__ = "signing_keys"

    id: str = Field(primary_key=True)
    public_jwk: dict[str, Any] = Field(sa_type=JSONB)
    sealed_private_jwk: bytes = Field(sa_type=LargeBinary)
    active_at: datetime


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
    """Audit log: what happened to an account, and from which address.

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


class ResetRequest(SQLModel, table=True):
    """A request to reset a password.

    It is inserted whether or not the account exists, so that both take the same time. A task
    answers it by mail.
    """

    __tablename__ = "reset_requests"

    id: UUID = Field(default_factory=uuid7, primary_key=True)
    email: str
    address: str
    user_agent: str
