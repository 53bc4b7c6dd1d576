"""Items, private to their owner."""

import sqlalchemy as sa
import sqlmodel
from alembic import op

revision = "items_0001"
down_revision = None
branch_labels = ("items",)
depends_on = ("users",)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "items",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("external_id", sa.String(), nullable=True),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("price", sa.Numeric(12, 2), nullable=False),
        sa.Column(
            "created_at",
            sqlmodel.UTCDateTime(),
            server_default=sa.func.clock_timestamp(),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sqlmodel.UTCDateTime(),
            server_default=sa.func.clock_timestamp(),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_items"),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name="fk_items_owner_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("owner_id", "external_id", name="uq_items_owner_id_external_id"),
        sa.CheckConstraint("price > 0", name="ck_items_price_positive"),
    )
    for column in ("created_at", "updated_at", "price", "title"):
        op.create_index(f"ix_items_owner_id_{column}", "items", ["owner_id", column, "id"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("items")
