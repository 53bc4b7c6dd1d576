"""Finds deleted accounts without reading all."""

import sqlalchemy as sa
from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "users_0006"
down_revision = "users_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently(
        "ix_users_deleted_at",
        "users",
        ["deleted_at"],
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently("ix_users_deleted_at", "users")
