"""Items that failed to be embedded are found without reading those that were never tried."""

import sqlalchemy as sa
from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "search_0013"
down_revision = "search_0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently(
        "ix_search_queue_retries",
        "search_queue",
        ["model_id", "owner_id", "next_attempt_at"],
        postgresql_where=sa.text("attempts > 0 AND NOT parked"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently("ix_search_queue_retries", "search_queue")
