"""Checks at runtime that a feature publishes its writes to a table with a topic."""

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine, Executable, event

from shared.db import sessions
from shared.db.changes import Topic
from shared.db.sessions import WriteSession
from shared.db.statements import DIALECT
from tests.kit.ownership import delivers_change, writers, written_tables


class _Transactions:
    """The tables written and the topics published in open transactions, by connection, as several
    requests may run at once; and the tables whose changes a committed one did not publish."""

    def __init__(self) -> None:
        self.topics = {
            value.name
            for name, module in list(sys.modules.items())
            if name.startswith("features.")
            for value in vars(module).values()
            if isinstance(value, Topic)
        }
        self.written: dict[object, set[str]] = defaultdict(set)
        self.published: set[object] = set()
        self.silent: set[str] = set()

    def write(self, connection: object, tables: set[str]) -> None:
        if tables & self.topics and writers() - {"shared"} and not delivers_change():
            self.written[connection] |= tables & self.topics

    def end(self, connection: object, *, committed: bool) -> None:
        tables = self.written.pop(connection, set())
        if committed and connection not in self.published:
            self.silent |= tables
        self.published.discard(connection)


@contextmanager
def check_published() -> Iterator[None]:
    """Fails at the end of the block if a transaction wrote to such a table and was silent."""
    open_ones = _Transactions()
    execute, fetch, publish = WriteSession.execute, WriteSession.fetch, Topic._publish
    commit, roll_back = sessions._commit, sessions._roll_back

    async def noted_execute(session: WriteSession, statement: Executable, *given: Any) -> int:
        open_ones.write(session._connection, _tables_of(statement))
        return await execute(session, statement, *given)

    async def noted_fetch(session: WriteSession, statement: Executable, *given: Any) -> Any:
        open_ones.write(session._connection, _tables_of(statement))
        return await fetch(session, statement, *given)

    def sent_by_orm(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        open_ones.write(connection.connection.driver_connection, written_tables(statement))

    async def noted_publish(topic: Topic, session: WriteSession, *given: Any) -> None:
        open_ones.published.add(session._connection)
        await publish(topic, session, *given)

    async def noted_commit(connection: Any, *given: Any) -> None:
        open_ones.end(connection, committed=True)
        await commit(connection, *given)

    async def noted_roll_back(connection: Any) -> None:
        open_ones.end(connection, committed=False)
        await roll_back(connection)

    event.listen(Engine, "before_cursor_execute", sent_by_orm)
    try:
        with (
            patch.object(WriteSession, "execute", noted_execute),
            patch.object(WriteSession, "fetch", noted_fetch),
            patch.object(Topic, "_publish", noted_publish),
            patch.object(sessions, "_commit", noted_commit),
            patch.object(sessions, "_roll_back", noted_roll_back),
        ):
            yield
    finally:
        event.remove(Engine, "before_cursor_execute", sent_by_orm)
    silent = ", ".join(sorted(open_ones.silent))
    assert not silent, f"a transaction wrote to {silent} and published no change of it"


@lru_cache(1_000)
def _tables_of(statement: Executable) -> set[str]:
    return written_tables(str(statement.compile(dialect=DIALECT)))  # type: ignore[attr-defined]
