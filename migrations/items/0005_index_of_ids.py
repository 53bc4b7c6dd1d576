"""An index of the ids alone, by which the release before finds the item that it changes.

The primary key no longer serves that, and without an index each change would read all items.
"""

from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "items_0005"
down_revision = "items_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently("ix_items_id", "items", ["id"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently("ix_items_id", "items")
