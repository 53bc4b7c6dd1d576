"""Counts the statements that a request sends to the database: query budgets, and a report.

Counts the statements of SQLAlchemy and those sent directly by asyncpg, but not BEGIN, COMMIT, COPY
and NOTIFY, nor those of features that subscribe to what the request changes.
"""

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest.mock import patch

from httpx import Response
from sqlalchemy import Engine, event
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.db import sessions, statements
from shared.db.changes import Topic

Endpoint = tuple[str, str]
"""The HTTP method and the path of a route."""

_publishing: ContextVar[bool] = ContextVar("whether subscribers run", default=False)


@contextmanager
def on_each_statement(record: Callable[[str], None]) -> Iterator[None]:
    """Calls `record` with each statement that this process sends within the block."""
    compile_one, compile_many = statements.compile_statement, statements.compile_many
    publish = Topic._publish

    def sent(statement: str) -> None:
        if "pg_notify" not in statement and not _publishing.get():
            record(statement)

    def executed(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent(statement)

    def sent_one(*given: Any) -> tuple[str, list[Any]]:
        sql, arguments = compile_one(*given)
        sent(sql)
        return sql, arguments

    def sent_many(*given: Any) -> tuple[str, list[list[Any]]]:
        sql, arguments = compile_many(*given)
        sent(sql)
        return sql, arguments

    async def publishing(*given: Any) -> None:
        token = _publishing.set(True)
        try:
            await publish(*given)
        finally:
            _publishing.reset(token)

    event.listen(Engine, "before_cursor_execute", executed)
    try:
        with (
            patch.object(sessions, "compile_statement", sent_one),
            patch.object(sessions, "compile_many", sent_many),
            patch.object(Topic, "_publish", publishing),
        ):
            yield
    finally:
        event.remove(Engine, "before_cursor_execute", executed)


@contextmanager
def recorded_queries() -> Iterator[list[str]]:
    """Collects the statements that this process sends within the block, to look at them:

    with recorded_queries() as statements:
        await client.get("/orders")
    assert "ORDER BY" in statements[0]
    """
    statements: list[str] = []
    with on_each_statement(statements.append):
        yield statements


@contextmanager
def max_queries(limit: int) -> Iterator[None]:
    """Fails if more than `limit` statements are executed within the block: a query budget.

    with max_queries(2):
        await client.get("/orders")
    """
    with recorded_queries() as statements:
        yield
    listed = "\n\n".join(statements)
    assert len(statements) <= limit, f"{len(statements)} queries instead of {limit}:\n\n{listed}"


def budgets(document: Path) -> dict[str, int]:
    """Reads the budgets from a table in a document, with rows like `| GET /orders | 2 |`."""
    rows = re.findall(r"^\| ([A-Z]+ /\S*) \| (\d+) \|", document.read_text(), re.MULTILINE)
    return {endpoint: int(limit) for endpoint, limit in rows}


async def assert_query_budgets(document: Path, requests: Mapping[str, Awaitable[Response]]) -> None:
    """Fails unless each request succeeds within its budget in the document.

    The document must have a budget for each request, and no others.
    """
    limits = budgets(document)
    assert limits.keys() == requests.keys()
    for endpoint, request in requests.items():
        with max_queries(limits[endpoint]):
            answer = await request
        assert answer.is_success, f"{endpoint}: {answer.text}"


_current: ContextVar[list[str]] = ContextVar("statements of the current request")


class QueryCounts:
    """Counts the statements of each request in a middleware, by endpoint."""

    def __init__(self) -> None:
        self.seen: dict[Endpoint, set[int]] = defaultdict(set)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            token = _current.set([])
            try:
                await app(scope, receive, send)
            finally:
                if route := scope.get("route"):
                    self.seen[scope["method"], route.path_format].add(len(_current.get()))
                _current.reset(token)

        return counting

    def counting(self) -> AbstractContextManager[None]:
        return on_each_statement(self._record)

    @staticmethod
    def _record(statement: str) -> None:
        if (statements := _current.get(None)) is not None:
            statements.append(statement)

    def as_rows(self) -> list[tuple[Endpoint, list[int]]]:
        """Returns the counts in types that can be sent to another process."""
        return [(endpoint, sorted(counts)) for endpoint, counts in self.seen.items()]

    def add_rows(self, rows: Iterable[tuple[Endpoint, list[int]]]) -> None:
        for (method, path), counts in rows:
            self.seen[method, path].update(counts)

    def as_table(self) -> list[str]:
        """Returns a line for each endpoint with the fewest and the most statements of a request."""
        width = max((len(path) for _, path in self.seen), default=0)
        return [
            f"{method:7}{path:{width}} {min(counts):4} to {max(counts)}"
            for (method, path), counts in sorted(
                self.seen.items(), key=lambda entry: entry[0][::-1]
            )
        ]
