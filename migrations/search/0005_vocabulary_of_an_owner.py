"""Words that end alike are found in the owner's vocabulary alone."""

import sqlalchemy as sa
from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "search_0005"
down_revision = "search_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently(
        "ix_search_words_reversed",
        "search_words",
        ["owner_id", sa.func.reverse(sa.column("word"))],
        postgresql_where=sa.text("length(word) > 2"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently("ix_search_words_reversed", "search_words")
