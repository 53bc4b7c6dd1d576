"""Without the index that the last release claimed items to embed by, of all owners at once.

Until the last of its processes has ended, they sort what waits.
"""

import sqlalchemy as sa
from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "search_0008"
down_revision = "search_0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently("ix_search_queue_due", "search_queue")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently(
        "ix_search_queue_due",
        "search_queue",
        ["model_id", "next_attempt_at"],
        postgresql_where=sa.text("NOT parked"),
    )
