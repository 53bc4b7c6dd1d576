"""Items without a foreign key to accounts: items can be distributed, and accounts cannot.

Items deletes the rows of a deleted account, when users publishes that it is deleted.
"""

from alembic import op

revision = "items_0006"
down_revision = "items_0005"
branch_labels = None
depends_on = None
ACCEPTED = (
    "ban-drop-constraint",  # a subscriber does what it did
    "constraint-missing-not-valid",  # in a downgrade
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_constraint("fk_items_owner_id", "items")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM items WHERE owner_id NOT IN (SELECT id FROM users)")
    op.create_foreign_key(
        "fk_items_owner_id", "items", "users", ["owner_id"], ["id"], ondelete="CASCADE"
    )
