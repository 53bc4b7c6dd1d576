"""Operations of revisions that change a table in use.

Each commits what its revision has done before, so let it be alone in its revision: if it fails or
its process ends, migrate again. Revisions that have been released call these functions, so their
names and arguments do not change.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import structlog
from alembic import op
from asyncpg import DeadlockDetectedError, LockNotAvailableError
from sqlalchemy import ColumnElement, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from shared.db.errors import database_cause

DEFAULT_WAIT_SECONDS = 3600.0
BATCH_LOCK_SECONDS = 0.5  # less than deadlock_timeout, so that no request is chosen as the victim
RETRY_SECONDS = 0.5
REPORT_SECONDS = 10.0
IS_INVALID = text(
    "SELECT EXISTS (SELECT FROM pg_index"
    " WHERE indexrelid = to_regclass(quote_ident(:name)) AND NOT indisvalid)"
)

Condition: TypeAlias = tuple[str, tuple[Any, ...]]
"""SQL with `$1`, `$2` …, and their values."""

log = structlog.get_logger("migrations")


def create_index_concurrently(
    name: str, table: str, columns: Sequence[str | ColumnElement[Any]], **options: Any
) -> None:
    """Builds an index while others write to the table. `options` are those of `op.create_index`.

    The build waits for all older transactions, and while it does, blocks nobody. An invalid index
    that a failed build has left is dropped first; a complete one is kept.

    Raises:
        DBAPIError: it waited longer for one transaction than `python -m app migrate --wait`.
    """
    with _no_transaction(_wait_seconds()):
        if not op.get_context().as_sql and op.get_bind().scalar(IS_INVALID, {"name": name}):
            op.drop_index(name, postgresql_concurrently=True)
        op.create_index(
            name, table, columns, postgresql_concurrently=True, if_not_exists=True, **options
        )


def drop_index_concurrently(name: str, table: str) -> None:
    """Drops an index while others use the table. It waits and raises as its build does."""
    with _no_transaction(_wait_seconds()):
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)


def backfill(table: str, assignments: str, *, where: str, batch: int = 1_000) -> None:
    """Updates the rows for which `where` is true, in batches that are committed one by one.

    `backfill("orders", "colour = 'none'", where="colour IS NULL")` walks along the primary key,
    `batch` rows at a time. Let `where` be false for a row that has been updated: then a backfill
    that is run again only has the rest to do. A batch that waits for a row that others have locked
    gives up, releases its own rows, and is tried again.

    Raises:
        ValueError: the table has no primary key.
        DBAPIError: a batch fails, or has been tried for as long as `python -m app migrate --wait`.
    """
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(f"UPDATE {table} SET {assignments} WHERE {where};")  # noqa: S608
        return
    rows, reported_at = 0, time.monotonic()
    with _no_transaction(BATCH_LOCK_SECONDS):
        for condition, values in _batches(table, batch):
            sql = f"UPDATE {table} SET {assignments} WHERE {condition} AND ({where})"  # noqa: S608
            rows += _update(sql, values)
            if time.monotonic() > reported_at + REPORT_SECONDS:
                log.info("backfill_continues", table=table, rows=rows)
                reported_at = time.monotonic()
    log.info("backfilled", table=table, rows=rows)


def _batches(table: str, size: int) -> Iterator[Condition]:
    """Yields conditions, each true for the next `size` rows in the order of the primary key."""
    bind = op.get_bind()
    columns = inspect(bind).get_pk_constraint(table)["constrained_columns"]
    if not columns:
        raise ValueError(f"backfill needs a primary key, and {table!r} has none")
    key = ", ".join(map(bind.dialect.identifier_preparer.quote, columns))
    after: Sequence[Any] | None = None
    while True:
        condition, values = _between(key, after, None)
        sql = (
            f"SELECT {key} FROM {table} WHERE {condition} ORDER BY {key} LIMIT 1 OFFSET {size - 1}"  # noqa: S608
        )
        last = bind.exec_driver_sql(sql, values).first()
        yield _between(key, after, last)
        if last is None:
            return
        after = last


def _between(key: str, after: Sequence[Any] | None, last: Sequence[Any] | None) -> Condition:
    conditions = ["true"]
    values: list[Any] = []
    for comparison, row in ((">", after), ("<=", last)):
        if row is not None:
            values += row
            numbers = range(len(values) - len(row) + 1, len(values) + 1)
            conditions.append(f"({key}) {comparison} ({', '.join(f'${n}' for n in numbers)})")
    return " AND ".join(conditions), tuple(values)


def _update(sql: str, values: tuple[Any, ...]) -> int:
    """Runs the UPDATE of a batch until it needs no lock that others hold, and returns its rows."""
    deadline = time.monotonic() + _wait_seconds()
    while True:
        try:
            return op.get_bind().exec_driver_sql(sql, values).rowcount
        except DBAPIError as error:
            cause = database_cause(error)
            locked = isinstance(cause, LockNotAvailableError | DeadlockDetectedError)
            if not locked or time.monotonic() > deadline:
                raise
        await_only(asyncio.sleep(RETRY_SECONDS))


def _wait_seconds() -> float:
    return float(op.get_context().opts.get("wait_seconds", DEFAULT_WAIT_SECONDS))


@contextmanager
def _no_transaction(lock_timeout: float) -> Iterator[None]:
    """Runs the block in autocommit mode, with a lock timeout in seconds."""
    with op.get_context().autocommit_block():
        op.execute(f"SET lock_timeout = '{lock_timeout * 1000:.0f}ms'")
        yield
        op.execute("RESET lock_timeout")
