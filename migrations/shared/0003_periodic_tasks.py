"""When each periodic task last started."""

import sqlalchemy as sa
import sqlmodel
from alembic import op

revision = "shared_0003"
down_revision = "shared_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "periodic_tasks",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("started_at", sqlmodel.UTCDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_periodic_tasks"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("periodic_tasks")
