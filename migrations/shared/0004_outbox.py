"""The outbox of published changes."""

import sqlalchemy as sa
import sqlmodel
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "shared_0004"
down_revision = "shared_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "outbox_changes",
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("ids", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("waiting", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sqlmodel.UTCDateTime(),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("owner_id", "id", name="pk_outbox_changes"),
    )
    op.create_index(
        "ix_outbox_changes_waiting", "outbox_changes", ["waiting"], postgresql_using="gin"
    )
    op.create_table(
        "outbox_failures",
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("change_id", sa.BigInteger(), nullable=False),
        sa.Column("subscriber", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sqlmodel.UTCDateTime(), nullable=True),
        sa.Column("error", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id", "change_id"],
            ["outbox_changes.owner_id", "outbox_changes.id"],
            name="fk_outbox_failures_owner_id_change_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("owner_id", "change_id", "subscriber", name="pk_outbox_failures"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("outbox_failures")
    op.drop_table("outbox_changes")
