"""Operations of revisions that change a table in use.

Revisions that have been released call them, so their names and arguments do not change.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from alembic import op
from sqlalchemy import ColumnElement, text

DEFAULT_WAIT_SECONDS = 3600.0
IS_INVALID = text(
    "SELECT EXISTS (SELECT FROM pg_index"
    " WHERE indexrelid = to_regclass(quote_ident(:name)) AND NOT indisvalid)"
)


def create_index_concurrently(
    name: str, table: str, columns: Sequence[str | ColumnElement[Any]], **options: Any
) -> None:
    """Builds an index while others write to the table. `options` are those of `op.create_index`.

    Commits what the revision has done before, so let it do nothing else. The build waits for all
    older transactions, and while it does, blocks nobody. If it fails, migrate again: an invalid
    index that it has left is dropped first, a complete one is kept.

    Raises:
        DBAPIError: it waited longer for one transaction than `python -m app migrate --wait`.
    """
    with _no_transaction():
        if not op.get_context().as_sql and op.get_bind().scalar(IS_INVALID, {"name": name}):
            op.drop_index(name, postgresql_concurrently=True)
        op.create_index(
            name, table, columns, postgresql_concurrently=True, if_not_exists=True, **options
        )


def drop_index_concurrently(name: str, table: str) -> None:
    """Drops an index while others use the table. It waits and raises as its build does."""
    with _no_transaction():
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)


@contextmanager
def _no_transaction() -> Iterator[None]:
    """Runs the block in autocommit mode, with the lock timeout for operations that block nobody."""
    context = op.get_context()
    seconds = context.opts.get("wait_seconds", DEFAULT_WAIT_SECONDS)
    with context.autocommit_block():
        op.execute(f"SET lock_timeout = '{seconds * 1000:.0f}ms'")
        yield
        op.execute("RESET lock_timeout")
