"""Without the trigrams of all owners' words, which the last release looked typos up in.

Until the last of its processes has ended, they read all words of an owner for that.
"""

from alembic import op

from migrations.operations import create_index_concurrently, drop_index_concurrently

revision = "search_0006"
down_revision = "search_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    drop_index_concurrently("ix_search_words_word", "search_words")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    create_index_concurrently(
        "ix_search_words_word",
        "search_words",
        ["word"],
        postgresql_using="gin",
        postgresql_ops={"word": "gin_trgm_ops"},
    )
