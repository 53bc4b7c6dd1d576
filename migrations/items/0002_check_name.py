"""Gives the check of the price the name that its model has.

In some processes the naming convention has added its prefix to the name in 0001 once more.
"""

from alembic import op

revision = "items_0002"
down_revision = "items_0001"
branch_labels = None
depends_on = None

RENAME = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'items'::regclass
               AND conname = 'ck_items_ck_items_price_positive') THEN
        ALTER TABLE items RENAME CONSTRAINT ck_items_ck_items_price_positive
            TO ck_items_price_positive;
    END IF;
END $$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(RENAME)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")  # and leaves the name, which suits 0001 as well
