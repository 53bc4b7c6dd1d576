"""An index that can become the primary key: the owner first, so that items can be distributed."""

from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "items_0004"
down_revision = "items_0003"
branch_labels = None
depends_on = None

NAME = "uq_items_owner_id_id"  # items_0005 makes it the primary key, which gives it another name


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently(NAME, "items", ["owner_id", "id"], unique=True)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently(NAME, "items")
