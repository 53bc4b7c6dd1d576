"""Lets the address of a deleted account be registered again."""

from alembic import op

revision = "users_0005"
down_revision = "users_0004"
branch_labels = None
depends_on = None
ACCEPTED = (
    "ban-drop-constraint",  # the index of 0004 takes its place, and its name
    "renaming-object",  # the name by which the code knows it: it tells a client what was wrong
    "disallowed-unique-constraint",  # in a downgrade
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_constraint("uq_users_email", "users")
    op.execute("ALTER INDEX uq_users_email_not_deleted RENAME TO uq_users_email")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM users WHERE deleted_at IS NOT NULL")
    op.execute("ALTER INDEX uq_users_email RENAME TO uq_users_email_not_deleted")
    op.create_unique_constraint("uq_users_email", "users", ["email"])
