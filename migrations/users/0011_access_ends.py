"""The last end of all access, to which reset tokens are bound."""

import sqlalchemy as sa
from alembic import op

revision = "users_0011"
down_revision = "users_0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "access_ends",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_ends")),
    )
    op.execute("INSERT INTO access_ends (id) VALUES (gen_random_uuid())")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("access_ends")
