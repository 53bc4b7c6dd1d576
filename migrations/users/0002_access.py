"""Sessions, keys, identities, events: every way into an account, and how it ends."""

from typing import Any

import sqlalchemy as sa
import sqlmodel
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "users_0002"
down_revision = "users_0001"
branch_labels = None
depends_on = ("shared_0002",)
# The check's column is new, with a valid default; whoever reads password_hash expects null.
ACCEPTED = ("constraint-missing-not-valid", "ban-drop-not-null")

NOW = sa.func.clock_timestamp()

# A deleted row is the revocation: whatever deletes it, every process hears of it.
REVOKE = """
CREATE FUNCTION revoke_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO revocations (id) SELECT id FROM gone ON CONFLICT DO NOTHING;
    PERFORM pg_notify('access', '') WHERE EXISTS (SELECT FROM gone);
    RETURN NULL;
END $$
"""
REVOKED_BY_DELETION = ("users", "sessions", "api_keys")
TRIGGER = """
CREATE TRIGGER revoke AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT EXECUTE FUNCTION revoke_deleted()
"""

# Neither goes on with what it was allowed before, whoever changes the row.
END_SESSIONS = """
CREATE FUNCTION end_sessions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM sessions WHERE user_id = NEW.id;
    RETURN NULL;
END $$
"""
ENDED_BY_CHANGE = """
CREATE TRIGGER end_sessions AFTER UPDATE OF role, is_active ON users FOR EACH ROW
WHEN (OLD.role <> NEW.role OR OLD.is_active > NEW.is_active) EXECUTE FUNCTION end_sessions()
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _change_users()
    _create_credentials()
    _create_records()
    op.execute(REVOKE)
    for table in REVOKED_BY_DELETION:
        op.execute(TRIGGER.format(table=table))
    op.execute(END_SESSIONS)
    op.execute(ENDED_BY_CHANGE)


def _change_users() -> None:
    op.add_column("users", _flag("email_verified", "false"))
    op.add_column("users", _flag("is_active", "true"))
    op.add_column("users", sa.Column("role", sa.String(), server_default="user", nullable=False))
    op.create_check_constraint(op.f("ck_users_role_known"), "users", "role IN ('user', 'admin')")
    op.alter_column("users", "password_hash", nullable=True)


def _create_credentials() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        _owner("sessions", nullable=False),
        sa.Column("scope", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("user_agent", sa.String(), nullable=False),
        _instant("created_at", default=True),
        _instant("last_used_at", default=True),
        _instant("expires_at"),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_index("ix_sessions_expires_at", "sessions", ["expires_at"])
    op.create_table(
        "refresh_tokens",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column(
            "session_id",
            sa.Uuid(),
            sa.ForeignKey("sessions.id", name="fk_refresh_tokens_session_id", ondelete="CASCADE"),
            nullable=False,
        ),
        _instant("used_at", nullable=True),
        sa.Column("sealed_successor", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("hash", name="pk_refresh_tokens"),
    )
    op.create_index("ix_refresh_tokens_session_id", "refresh_tokens", ["session_id"])
    op.create_index("ix_refresh_tokens_used_at", "refresh_tokens", ["used_at"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        _owner("api_keys", nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("hint", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        _instant("created_at", default=True),
        _instant("expires_at", nullable=True),
        _instant("last_used_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("hash", name="uq_api_keys_hash"),
    )
    op.create_index("ix_api_keys_user_id", "api_keys", ["user_id"])
    op.create_table(
        "identities",
        sa.Column("id", sa.Uuid(), nullable=False),
        _owner("identities", nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("email", sa.String(), nullable=True),
        _instant("created_at", default=True),
        sa.PrimaryKeyConstraint("id", name="pk_identities"),
        sa.UniqueConstraint("issuer", "subject", name="uq_identities_issuer_subject"),
    )
    op.create_index("ix_identities_user_id", "identities", ["user_id"])


def _create_records() -> None:
    op.create_table(
        "revocations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "transaction",
            sa.BigInteger(),
            server_default=sa.text("((pg_current_xact_id())::text)::bigint"),
            nullable=False,
        ),
        _instant("created_at", default=True),
        sa.PrimaryKeyConstraint("id", name="pk_revocations"),
    )
    op.create_index("ix_revocations_transaction", "revocations", ["transaction"])
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("public_jwk", postgresql.JSONB(), nullable=False),
        sa.Column("sealed_private_jwk", sa.LargeBinary(), nullable=False),
        _instant("active_at"),
        sa.PrimaryKeyConstraint("id", name="pk_signing_keys"),
    )
    op.create_table(
        "account_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        _owner("account_events", nullable=True),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("user_agent", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=True),
        _instant("created_at", default=True),
        sa.PrimaryKeyConstraint("id", name="pk_account_events"),
    )
    op.create_index("ix_account_events_user_id", "account_events", ["user_id", "created_at", "id"])
    op.create_table(
        "reset_requests",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("user_agent", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_reset_requests"),
    )


def _owner(table: str, *, nullable: bool) -> sa.Column[Any]:
    key = sa.ForeignKey("users.id", name=f"fk_{table}_user_id", ondelete="CASCADE")
    return sa.Column("user_id", sa.Uuid(), key, nullable=nullable)


def _instant(name: str, *, nullable: bool = False, default: bool = False) -> sa.Column[Any]:
    return sa.Column(
        name,
        sqlmodel.UTCDateTime(),
        server_default=NOW if default else None,
        nullable=nullable,
    )


def _flag(name: str, default: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), server_default=sa.text(default), nullable=False)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DROP TRIGGER revoke ON users")
    op.execute("DROP TRIGGER end_sessions ON users")
    for table in (
        "reset_requests",
        "account_events",
        "signing_keys",
        "identities",
        "api_keys",
        "refresh_tokens",
        "sessions",
        "revocations",
    ):
        op.drop_table(table)
    op.execute("DROP FUNCTION revoke_deleted()")
    op.execute("DROP FUNCTION end_sessions()")
    op.drop_constraint(op.f("ck_users_role_known"), "users")
    for column in ("role", "is_active", "email_verified"):
        op.drop_column("users", column)
    op.execute("DELETE FROM users WHERE password_hash IS NULL")
    op.alter_column("users", "password_hash", nullable=False)
