"""The keys that sign access tokens, and the revocation list.

Access is revoked by deleting a row: a trigger then writes its id to `revocations` and notifies all
processes (see revocation_list.py).
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, LargeBinary, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel


class SigningKey(SQLModel, table=True):
    """A key that signs access tokens from `active_at` until the `active_at` of the next key.

    The private key is encrypted under `APP_SECRET_KEY`.
    """

    __tablename__ = "signing_keys"

    id: str = Field(primary_key=True)
    public_jwk: dict[str, Any] = Field(sa_type=JSONB)
    encrypted_private_jwk: bytes = Field(
        sa_type=LargeBinary, sa_column_kwargs={"name": "sealed_private_jwk"}
    )
    active_at: datetime


class Revocation(SQLModel, table=True):
    """The id of a deleted account, session or API key, kept for as long as a token may name it.

    Triggers write here, and who deletes an account. `transaction` is the id of the transaction that
    did: a poll compares it with its snapshot.
    """

    __tablename__ = "revocations"

    id: UUID = Field(primary_key=True)
    transaction: int = Field(
        default=None,
        nullable=False,
        sa_type=BigInteger,
        index=True,
        sa_column_kwargs={"server_default": text("((pg_current_xact_id())::text)::bigint")},
    )
    created_at: datetime = Field(
        default=None, nullable=False, sa_column_kwargs={"server_default": func.clock_timestamp()}
    )
