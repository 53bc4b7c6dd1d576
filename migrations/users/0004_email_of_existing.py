"""Makes addresses unique among the accounts that are not deleted."""

import sqlalchemy as sa
from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "users_0004"
down_revision = "users_0003"
branch_labels = None
depends_on = None

NAME = "uq_users_email_not_deleted"  # the next revision gives it the name of the constraint


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently(
        NAME, "users", ["email"], unique=True, postgresql_where=sa.text("deleted_at IS NULL")
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently(NAME, "users")
