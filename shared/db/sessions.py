"""The sessions of the database: reads in autocommit mode, snapshots to stream, and transactions.

Statements are SQLAlchemy Core's, sent by asyncpg directly, and return rows. SQLAlchemy's own
connection spends more time around a statement than the statement takes
(`python -m tests.benchmarks.layers`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from contextvars import ContextVar
from typing import Any, NoReturn, Self, TypeAlias, TypeVar
from weakref import WeakSet

import structlog
from asyncpg import PostgresError
from pydantic import BaseModel
from sqlalchemy import Executable, text
from sqlalchemy.engine import Connection as OrmConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.db.changes import Subscribers
from shared.db.errors import (
    CONNECTION_LOST,
    CONNECTION_LOST_ERRORS,
    ENDED_BY_SERVER_ERRORS,
    OUTCOME_UNKNOWN,
    database_cause,
    is_worker_lost,
)
from shared.db.pool import CANCEL_TIMEOUT_SECONDS, Connection, Row
from shared.db.statements import compile_many, compile_statement, convert_rows
from shared.problems import Unavailable

Connections: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]
Values: TypeAlias = Mapping[str, Any]
NO_VALUES: Values = {}
BEGIN_TIMEOUT_SECONDS = 5.0  # then the server has vanished, and the connection is given up
COMMIT_SECONDS = 30.0  # that a task, which has no deadline, waits for its COMMIT
ABANDONED_COMMIT_SECONDS = 10.0  # then its connection is closed, as the server may be gone
SILENCE_SECONDS = 5.0  # after a statement's timeout: by then a server that lives has cancelled it
MANY_SECONDS = 300.0  # for one statement with many values
NEVER_SECONDS = 86_400.0  # for asyncpg, where None is the timeout of the connection

SET_TIMEOUTS = text("""
SELECT set_config('statement_timeout', :statement, true),
    set_config('lock_timeout', coalesce(:lock, current_setting('lock_timeout')), true)
""")

request_state: ContextVar[dict[str, Any] | None] = ContextVar("request_state", default=None)
"""The state of the current request: `commits` is set in it before a COMMIT is sent."""

UNCONFIRMED: WeakSet[Connection] = WeakSet()
"""Connections whose last COMMIT is not on the synchronous standby."""

Model = TypeVar("Model", bound=BaseModel)

log = structlog.get_logger(__name__)


class ReadSession:
    """A read-only session in autocommit mode: each statement sees the newest snapshot.

    It holds a connection only while a statement runs, so it can stay open during other waits.
    `values` may have more than a statement's parameters. After `timeout` seconds without an answer
    a statement fails, and its connection is closed.
    """

    def __init__(self, connections: Connections, timeout: float | None = None) -> None:
        self._connections, self._timeout = connections, timeout

    async def fetch(self, statement: Executable, values: Values = NO_VALUES) -> list[Row]:
        """Returns all rows of a statement.

        Raises:
            Unavailable: no connection can be made or becomes free in time, or it is lost.
            PostgresError: the statement fails.
        """
        sql, arguments = compile_statement(statement, values)
        async with self._connections() as connection:
            rows = await connection.fetch(sql, *arguments, timeout=self._timeout)
        return convert_rows(statement, rows)

    async def fetch_one(self, statement: Executable, values: Values = NO_VALUES) -> Row | None:
        """Returns the first row of a statement, or None; raises as `fetch` does."""
        rows = await self.fetch(statement, values)
        return rows[0] if rows else None

    async def fetch_value(self, statement: Executable, values: Values = NO_VALUES) -> Any:
        """Returns the first column of the first row, or None; raises as `fetch` does."""
        row = await self.fetch_one(statement, values)
        return row[0] if row else None

    async def fetch_as(
        self, model: type[Model], statement: Executable, values: Values = NO_VALUES
    ) -> list[Model]:
        """Returns all rows as models; raises as `fetch` does.

        Raises:
            ValidationError: a row is not valid for the model.
        """
        return [model.model_validate(dict(row)) for row in await self.fetch(statement, values)]


class SnapshotSession:
    """A read-only session whose statements all see one snapshot, and whose rows are streamed.

    The snapshot is given up after `seconds`, even while a client is waiting, since PostgreSQL keeps
    every row that has been deleted after it, in all tables.
    """

    def __init__(self, connections: Connections, seconds: float, timeout: float) -> None:
        self._connections, self.seconds, self._timeout = connections, seconds, timeout
        self._stack, self._reading = AsyncExitStack(), asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *error: Any) -> None:
        if not self._given_up:
            self._timer.cancel()
        await self._stack.__aexit__(*error)

    async def _open(self) -> None:
        self._connection = await self._stack.enter_async_context(self._connections())
        self._given_up = False
        self._timer = asyncio.create_task(self._give_up())

    async def _give_up(self) -> None:
        await asyncio.sleep(self.seconds)
        async with self._reading:
            self._given_up = True
            with suppress(Unavailable, *CONNECTION_LOST_ERRORS):  # a new one is opened anyway
                await self._stack.aclose()

    async def batches(
        self,
        statement: Executable,
        values: Values,
        size: int,
        following: Executable | None = None,
    ) -> AsyncIterator[Sequence[Row]]:
        """Yields the rows of a statement from a cursor, up to `size` at a time.

        If the snapshot is given up meanwhile, continues in a new one with the statement
        `following`: the rows after the last one, whose columns are its parameters, `after_id` and
        so on.

        Raises:
            PostgresError: the statement fails.
            Unavailable: the snapshot has been given up, and `following` is missing.
        """
        while True:
            async for batch in self._batches_until_given_up(statement, values, size):
                yield convert_rows(statement, batch)
                last = dict(batch[-1])
                values = {**values, **{f"after_{name}": last[name] for name in last}}
            if not self._given_up:
                return
            if following is None:
                raise Unavailable(f"The answer took longer than {self.seconds:g} s")
            statement = following
            await self._open()

    async def _batches_until_given_up(
        self, statement: Executable, values: Values, size: int
    ) -> AsyncIterator[list[Row]]:
        sql, arguments = compile_statement(statement, values)
        cursor: Any = None
        while True:
            async with self._reading:
                if self._given_up:
                    return
                cursor = cursor or await self._connection.cursor(
                    sql, *arguments, timeout=self._timeout
                )
                batch = await cursor.fetch(size, timeout=self._timeout)
            if not batch:
                return
            yield batch


class WriteSession(ReadSession):
    """One transaction, in which each statement sees the changes before it.

    `orm` is SQLAlchemy's view of the same transaction: a request may use both. Pending changes
    of the ORM are flushed before each statement. `subscribers` run when a change is published.
    """

    def __init__(
        self,
        connection: Connection,
        open_orm: Callable[[], AsyncSession],
        subscribers: Subscribers,
    ) -> None:
        super().__init__(lambda: nullcontext(connection))
        self._connection, self._open_orm = connection, open_orm
        self._orm: AsyncSession | None = None
        self.subscribers = subscribers
        self.notified: set[str] = set()

    async def allow(self, *, statement: float, lock: float | None = None) -> None:
        """Sets the timeouts of this transaction's statements, the ORM's too, and of its locks, in
        seconds, instead of those of the settings."""
        values = {
            "statement": milliseconds(statement),
            "lock": None if lock is None else milliseconds(lock),
        }
        await self.execute(SET_TIMEOUTS, values)
        driver: Any = self._connection  # SQLAlchemy passes no timeout with a statement
        driver._config = driver._config._replace(command_timeout=statement + SILENCE_SECONDS)

    def notify(self, channel: str) -> None:
        """Wakes the background tasks that listen on a channel, once this has been committed."""
        self.notified.add(channel)

    @property
    def orm(self) -> AsyncSession:
        """The ORM session of this transaction, opened when first used. Flush, never commit."""
        if self._orm is None:
            self._orm = self._open_orm()
            self._orm.info[WriteSession] = self
        return self._orm

    async def fetch(self, statement: Executable, values: Values = NO_VALUES) -> list[Row]:
        await self.flush()
        sql, arguments = compile_statement(statement, values)
        return convert_rows(statement, await self._connection.fetch(sql, *arguments))

    async def execute(
        self, statement: Executable, values: Values | Sequence[Values] = NO_VALUES
    ) -> int:
        """Runs a statement, and returns the number of rows that it inserted, changed or deleted.

        A sequence of values runs it once for each, in few round trips, and returns their number.
        Raises as `fetch` does.
        """
        await self.flush()
        if isinstance(values, Mapping):
            sql, arguments = compile_statement(statement, values)
            tag = await self._connection.execute(sql, *arguments)
            count = tag.rpartition(" ")[2]  # as in "UPDATE 3"
            return int(count) if count.isdigit() else 0
        if values:
            sql, rows = compile_many(statement, values)
            await self._connection.executemany(sql, rows, timeout=MANY_SECONDS)
        return len(values)

    async def copy(
        self, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]]
    ) -> None:
        """Inserts the records into a table with COPY; raises as `fetch` does."""
        await self.flush()
        await self._connection.copy_records_to_table(table, columns=columns, records=records)

    async def flush(self) -> None:
        """Sends the pending changes of the ORM."""
        if self._orm is not None:
            await self._orm.flush()

    def _close_orm(self) -> None:
        if self._orm is not None:
            self._orm.sync_session.expunge_all()


def milliseconds(seconds: float) -> str:
    """Returns a duration as a setting of PostgreSQL."""
    return str(round(seconds * 1000))


def write_session_of(orm: AsyncSession) -> WriteSession:
    """Returns the write session of the transaction that this ORM session is a view of."""
    session: WriteSession = orm.info[WriteSession]
    return session


class _OrmView(AsyncSession):
    """SQLAlchemy's view of a transaction that is committed elsewhere."""

    async def commit(self) -> NoReturn:
        raise RuntimeError("Flush, never commit: the transaction is committed after the handler")

    async def rollback(self) -> NoReturn:
        raise RuntimeError("Raise a problem to roll back; use begin_nested() for a part")


class EndedByAnswer(Exception):
    """Ends a request with an answer that holds only once its transaction is committed."""


@asynccontextmanager
async def transaction(
    engine: AsyncEngine,
    begin: str,
    pooled: PoolProxiedConnection,
    committing: set[Connection],
    subscribers: Subscribers,
) -> AsyncIterator[WriteSession]:
    """Begins a transaction with `begin`; commits it at the end, or rolls it back on any error but
    `EndedByAnswer`.

    Returns the connection to the pool. A connection whose COMMIT the caller has given up is in
    `committing` until the COMMIT ends, and counts as in use until then.

    Raises:
        Unavailable: the connection is lost; in the commit, the outcome is unknown.
        PostgresError: the commit fails.
        RuntimeError: a statement failed and its error was suppressed.
    """

    def open_orm() -> AsyncSession:
        # SQLAlchemy is in autocommit mode: it sends neither BEGIN nor COMMIT. That a `Connection`
        # can be made of a pooled connection is not documented (tests/kernel/test_sessions.py).
        connection = OrmConnection(engine.sync_engine, connection=pooled)
        return _OrmView(AsyncConnection(engine, connection), expire_on_commit=False)

    driver: Any = pooled.driver_connection
    config = driver._config  # which `allow` changes
    session = WriteSession(driver, open_orm, subscribers)
    answer: EndedByAnswer | None = None
    try:
        try:
            await _begin(driver, begin)
            try:
                yield session
            except EndedByAnswer as ended:
                answer = ended
            await session.flush()
        except BaseException:
            await _roll_back(driver)
            raise
        await _commit(driver, pooled, committing)
    except (*CONNECTION_LOST_ERRORS, DBAPIError) as error:
        if driver.is_closed() and isinstance(database_cause(error), CONNECTION_LOST_ERRORS):
            raise Unavailable(CONNECTION_LOST) from error
        raise
    finally:
        session._close_orm()
        driver._config = config
        if driver not in committing:
            pooled.close()
    if answer:
        raise answer


async def _begin(connection: Connection, begin: str) -> None:
    try:
        await connection.execute(begin, timeout=BEGIN_TIMEOUT_SECONDS)
    except TimeoutError:
        connection.terminate()  # a pooler may answer later statements, though it has no server
        raise


async def _commit(
    connection: Connection, pooled: PoolProxiedConnection, committing: set[Connection]
) -> None:
    """Commits. If the caller is cancelled meanwhile, or has no deadline and has waited for
    `COMMIT_SECONDS`, the COMMIT keeps running: PostgreSQL would make a COMMIT that waits for a
    synchronous standby a local one if it were cancelled.

    Raises:
        Unavailable: the connection is lost meanwhile, or silent, or an administrator has cancelled
            that wait: the outcome is unknown.
    """
    patience: float | None = COMMIT_SECONDS
    if (state := request_state.get()) is not None:
        state["commits"], patience = True, None
    commit = asyncio.ensure_future(connection.execute("COMMIT", timeout=NEVER_SECONDS))
    try:
        if patience and not (await asyncio.wait({commit}, timeout=patience))[0]:
            _abandon(commit, connection, pooled, committing)
            raise Unavailable(OUTCOME_UNKNOWN)
        tag = await asyncio.shield(commit)
    except asyncio.CancelledError:
        _abandon(commit, connection, pooled, committing)
        raise
    except (OSError, PostgresError) as error:
        if _leaves_outcome_unknown(error):
            raise Unavailable(OUTCOME_UNKNOWN) from error
        raise
    if connection in UNCONFIRMED:
        UNCONFIRMED.discard(connection)
        raise Unavailable(OUTCOME_UNKNOWN)
    if tag != "COMMIT":  # it rolls back without an error where a failed statement was suppressed
        raise RuntimeError("A statement had failed: nothing was committed")


def _abandon(
    commit: "asyncio.Future[str]",
    connection: Connection,
    pooled: PoolProxiedConnection,
    committing: set[Connection],
) -> None:
    """Gives the connection of a COMMIT back when it ends, or after `ABANDONED_COMMIT_SECONDS`."""
    committing.add(connection)
    loop = asyncio.get_running_loop()
    timer = loop.call_later(ABANDONED_COMMIT_SECONDS, connection.terminate)

    def discard(done: "asyncio.Future[str]") -> None:
        if not done.cancelled():
            done.exception()
        timer.cancel()
        connection.terminate()
        committing.discard(connection)
        pooled.close()

    commit.add_done_callback(discard)


def _leaves_outcome_unknown(error: OSError | PostgresError) -> bool:
    """Returns whether a COMMIT that fails so may have taken effect: its server, or the worker of a
    cluster that has its rows, has not answered."""
    return isinstance(error, (OSError, *ENDED_BY_SERVER_ERRORS)) or is_worker_lost(error)


def notice_unconfirmed(connection: Connection) -> None:
    """Lets `_commit` know of a COMMIT whose wait for a synchronous standby was cancelled.

    PostgreSQL answers it like any other, after a warning, whose words depend on `lc_messages`.
    """

    def record(_: object, message: Any) -> None:
        if message.as_dict().get("server_source_function") == "SyncRepWaitForLSN":
            UNCONFIRMED.add(connection)

    connection.add_log_listener(record)


async def _roll_back(connection: Connection) -> None:
    """Rolls back; where that fails, closes the connection, so that it is not used again."""
    if connection.is_closed():
        return
    rolled_back = False
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT_SECONDS):
            await connection.execute("ROLLBACK")
            rolled_back = True
    except (OSError, PostgresError) as error:
        log.warning("connection_given_up", error=repr(error))
    except Exception:  # a bug in our code, such as two concurrent statements
        log.exception("connection_given_up")
    finally:
        if not rolled_back:
            connection.terminate()
