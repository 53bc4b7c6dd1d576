"""Nothing looks for all used refresh tokens any more: each refresh deletes those of its session."""

from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "users_0008"
down_revision = "users_0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently("ix_refresh_tokens_used_at", "refresh_tokens")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently("ix_refresh_tokens_used_at", "refresh_tokens", ["used_at"])
