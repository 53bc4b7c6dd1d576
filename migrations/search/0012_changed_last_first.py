"""The items of an owner are counted by the time of their change, the last first."""

import sqlalchemy as sa
from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "search_0012"
down_revision = "search_0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently(
        "ix_search_pending_changed",
        "search_pending",
        ["owner_id", "next_attempt_at"],
        postgresql_where=sa.text("NOT parked"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently("ix_search_pending_changed", "search_pending")
