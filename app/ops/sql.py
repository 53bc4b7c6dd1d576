"""Logs each SQL statement with its time and rows, if `APP_LOG_SQL` is set."""

import functools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from asyncpg import Connection
from asyncpg.cursor import Cursor
from asyncpg.prepared_stmt import PreparedStatement

from shared.settings import Settings

SENDING_METHODS: Sequence[tuple[type, str]] = (
    (Connection, "fetch"),
    (Connection, "execute"),
    (Connection, "executemany"),
    (Connection, "copy_records_to_table"),
    (PreparedStatement, "fetch"),  # the statements of SQLAlchemy
    (Cursor, "fetch"),  # each batch of a stream
)

log = structlog.get_logger("sql")


@contextmanager
def log_statements(settings: Settings) -> Iterator[None]:
    """Logs the statements of this process within the block, without their values.

    It replaces methods of asyncpg, so that statements cost nothing more where it is off.
    """
    if not settings.log_sql:
        yield
        return
    replaced = [(kind, name, getattr(kind, name)) for kind, name in SENDING_METHODS]
    for kind, name, method in replaced:
        setattr(kind, name, _logged(method))
    try:
        yield
    finally:
        for kind, name, method in replaced:
            setattr(kind, name, method)


def _logged(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def logged(sender: Any, *arguments: Any, **options: Any) -> Any:
        result: Any = None
        outcome: dict[str, Any] = {}
        started = time.perf_counter()
        try:
            result = await method(sender, *arguments, **options)
            outcome = {"rows": _rows(sender, arguments, result)}
        except BaseException as error:
            outcome = {"error": type(error).__name__}
            raise
        finally:
            ms = round((time.perf_counter() - started) * 1000, 2)
            log.info("sql", statement=_statement(method, sender, arguments), ms=ms, **outcome)
        return result

    return logged


def _statement(method: Callable[..., Any], sender: Any, arguments: Sequence[Any]) -> str:
    """Returns the statement in one line."""
    if isinstance(sender, PreparedStatement):
        sql = sender.get_query()
    elif isinstance(sender, Cursor):
        sql = sender._query  # type: ignore[attr-defined]  # asyncpg has no other way to it
    elif method.__name__ == "copy_records_to_table":
        sql = f"COPY {arguments[0]} FROM STDIN"
    else:
        sql = arguments[0]
    return " ".join(sql.split())


def _rows(sender: Any, arguments: Sequence[Any], result: Any) -> int:
    """Returns the number of rows that a statement returned, inserted, changed or deleted."""
    if isinstance(sender, PreparedStatement) and not result:
        result = sender.get_statusmsg()
    if isinstance(result, str):  # like "UPDATE 3"
        count = result.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0
    return len(arguments[1] if result is None else result)
