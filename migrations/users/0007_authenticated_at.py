"""When the person of a session proved who they are; of older sessions this is not known."""

import sqlalchemy as sa
import sqlmodel
from alembic import op

revision = "users_0007"
down_revision = "users_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("sessions", sa.Column("authenticated_at", sqlmodel.UTCDateTime(), nullable=True))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("sessions", "authenticated_at")
