"""Checks at runtime that only the feature that owns a table writes to it.

The writer is found on the call stack: the feature whose code is nearest to the statement. If no
feature is on the stack, as when the commit of a request flushes changes that its handler made,
the writer is the feature of the route.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

import greenlet
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.db.tables import table_owners
from tests.kit.queries import on_each_statement

WRITTEN = re.compile(
    r"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO|COPY|TRUNCATE|(?:ALTER|DROP|LOCK)\s+TABLE"
    r"|CREATE\s+(?:UNIQUE\s+)?INDEX\s[^;(]*?\bON)(?:\s+(?:TABLE|ONLY|IF\s+EXISTS))*"
    r"\s+(?:public\.)?\"?(\w+)",
    re.I,
)

_request: ContextVar[Scope | None] = ContextVar("request", default=None)


def written_tables(sql: str) -> set[str]:
    """Returns the tables that a statement writes to, or may write to, as far as its text shows."""
    return set(WRITTEN.findall(sql))


@contextmanager
def check_table_writes(app: FastAPI) -> Iterator[None]:
    """Fails at the end of the block if code in this process wrote to a table it does not own."""
    violations: set[str] = set()

    def check(statement: str) -> None:
        written = written_tables(statement)
        found = writers() if written else set()
        owner = table_owners() if found else {}
        for table in written & owner.keys():
            if owner[table] not in found:
                writer = next(iter(found - {"shared"}), "shared")
                violations.add(f"{writer} writes to {table}, which belongs to {owner[table]}")

    middleware: list[object] = [each.cls for each in app.user_middleware]
    if remember_request not in middleware:
        app.add_middleware(remember_request)
    with on_each_statement(check):
        yield
    assert not violations, "; ".join(sorted(violations))


def remember_request(app: ASGIApp) -> ASGIApp:
    """A middleware that stores the current request, for the check of each statement."""

    async def with_request(scope: Scope, receive: Receive, send: Send) -> None:
        token = _request.set(scope)
        try:
            await app(scope, receive, send)
        finally:
            _request.reset(token)

    return with_request


def writers() -> set[str]:
    """Returns the writing feature, and `shared` if the kernel runs the statement for it.

    Returns an empty set if neither the stack nor the route leads to a feature.
    """
    found: set[str] = set()
    for frame in _stack():
        package, *module = frame.f_globals.get("__name__", "").split(".")
        if package == "features" and "tests" not in module:
            return {*found, module[0]}
        if package == "shared":
            found.add("shared")
    route = (_request.get() or {}).get("route")
    owner = route.endpoint.__module__.split(".") if route else []
    return {*found, owner[1]} if owner[:1] == ["features"] else set()


def delivers_change() -> bool:
    """Returns whether a subscriber runs the statement after the publisher's commit."""
    return any(frame.f_globals.get("__name__") == "app.outbox" for frame in _stack())


def _stack() -> Iterator[FrameType]:
    """Yields the frames of the call stack, nearest first.

    Continues in the parent of a greenlet, because SQLAlchemy runs its driver in one.
    """
    current = greenlet.getcurrent()
    frame: FrameType | None = sys._getframe()
    while current is not None:
        while frame is not None:
            yield frame
            frame = frame.f_back
        current = current.parent
        frame = current.gr_frame if current is not None else None
