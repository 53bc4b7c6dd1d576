"""The hash of the id of a session's family. A session of before has none, and is not continued: its
tokens name it by its own id, which each access token shows."""

import sqlalchemy as sa
from alembic import op

revision = "users_0009"
down_revision = "users_0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("sessions", sa.Column("family_hash", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("sessions", "family_hash")
