"""A refresh finds its session by the hash of the family's id."""

from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "users_0010"
down_revision = "users_0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently("ix_sessions_family_hash", "sessions", ["family_hash"], unique=True)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently("ix_sessions_family_hash", "sessions")
