"""Names the owner of an idempotency key `owner_id`, as the owner of all other rows is."""

from alembic import op

revision = "shared_0005"
down_revision = "shared_0004"
branch_labels = None
depends_on = None
ACCEPTED = ("renaming-column",)  # with a stopped service, as README says


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.alter_column("idempotency_keys", "user_id", new_column_name="owner_id")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.alter_column("idempotency_keys", "owner_id", new_column_name="user_id")
