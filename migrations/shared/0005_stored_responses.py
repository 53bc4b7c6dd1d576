"""Names the column of stored responses that has their owner `owner_id`, as in all other tables.

The release before serves on: it knows the table and the column by their old names, which a view has
now. A renamed table alone would not do, as both releases must see each other's rows.
"""

from alembic import op

revision = "shared_0005"
down_revision = "shared_0004"
branch_labels = None
depends_on = None
ACCEPTED = ("renaming-table", "renaming-column", "renaming-object")  # the view has the old names


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.rename_table("idempotency_keys", "stored_responses")
    op.alter_column("stored_responses", "user_id", new_column_name="owner_id")
    _rename_indexes("idempotency_keys", "stored_responses")
    op.execute("""
    CREATE VIEW idempotency_keys AS
    SELECT owner_id AS user_id, key, fingerprint, status, headers, body, expires_at
    FROM stored_responses
    """)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DROP VIEW idempotency_keys")
    _rename_indexes("stored_responses", "idempotency_keys")
    op.alter_column("stored_responses", "owner_id", new_column_name="user_id")
    op.rename_table("stored_responses", "idempotency_keys")


def _rename_indexes(before: str, after: str) -> None:
    op.execute(f"ALTER INDEX pk_{before} RENAME TO pk_{after}")
    op.execute(f"ALTER INDEX ix_{before}_expires_at RENAME TO ix_{after}_expires_at")
