"""Makes `(owner_id, id)` the primary key of items. No row is read: the index of 0004 has them."""

from alembic import op

revision = "items_0005"
down_revision = "items_0004"
branch_labels = None
depends_on = None
ACCEPTED = ("ban-drop-constraint",)  # another primary key takes its place in the same statement


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("""
    ALTER TABLE items DROP CONSTRAINT pk_items,
        ADD CONSTRAINT pk_items PRIMARY KEY USING INDEX uq_items_owner_id_id
    """)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("CREATE UNIQUE INDEX uq_items_owner_id_id ON items (owner_id, id)")
    op.execute(
        "ALTER TABLE items DROP CONSTRAINT pk_items, ADD CONSTRAINT pk_items PRIMARY KEY (id)"
    )
