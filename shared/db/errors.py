"""Recognises the errors of PostgreSQL and its connections, and translates them into problems."""

import re
from collections.abc import Mapping
from typing import TypeAlias

from asyncpg import (
    AdminShutdownError,
    ConnectionFailureError,
    CrashShutdownError,
    IntegrityConstraintViolationError,
    InterfaceError,
    InternalClientError,
    InternalServerError,
    InvalidCachedStatementError,
    PostgresConnectionError,
    PostgresError,
    PostgresIOError,
    ReadOnlySQLTransactionError,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from shared.problems import Problem, Unavailable, Unprocessable

CONNECTION_LOST = "The database connection was lost; please try again"
UNREACHABLE = "The database cannot be reached; please try again"
OUTCOME_UNKNOWN = (
    "Whether the request took effect is unknown: the database has not confirmed it. It can be sent"
    " again with the same Idempotency-Key; without one, look first"
)
READ_ONLY = "The database takes no changes for the moment; please try again"
WORKER_LOST = "A part of the data cannot be reached; please try again"
WORKER_LOST_MESSAGE = re.compile(
    "SSL SYSCALL error|SSL error|server closed the connection|connection not open"
    "|no connection to the server|could not (?:send|receive) data"
    "|terminating connection due to unexpected postmaster exit|failed to COPY to shard"
    "|failure on connection marked as essential|could not commit transaction for shard"
    "|connection to the remote node|could not establish any connections to the node"
)
"""The messages of libpq and of Citus when a coordinator has lost a worker, or cannot connect to it.
Their SQLSTATE is that of a bug, of a broken disk, or of a lost connection of our own."""

CONNECT_ERRORS = (
    OSError,
    TimeoutError,
    PostgresError,
    InterfaceError,
    InternalClientError,
    InvalidRequestError,
)
"""The exceptions that `connector` and its connections raise; and SQLAlchemy's, which wraps them
only after the connect, where a new connection is closed before its first use."""

ENDED_BY_SERVER_ERRORS = (PostgresConnectionError, AdminShutdownError, CrashShutdownError)
"""The exceptions with which PostgreSQL, or a pooler, ends a connection."""

CONNECTION_LOST_ERRORS = (OSError, InterfaceError, InternalClientError, *ENDED_BY_SERVER_ERRORS)
"""The exceptions that asyncpg raises where a connection is lost, or is used wrongly."""

DatabaseError: TypeAlias = DBAPIError | PostgresError

CONSTRAINT_IN_MESSAGE = re.compile(r'constraint "([^"]+)"')
SHARD_SUFFIX = re.compile(r"_\d{6,}$")  # of Citus, whose shards are numbered from 102008


class Unreachable(Unavailable):
    """No connection to the database can be made."""


def database_cause(error: BaseException) -> BaseException | None:
    """Returns asyncpg's exception, which SQLAlchemy wraps unless asyncpg is used directly."""
    if isinstance(error, DBAPIError):
        return error.orig.__cause__ if error.orig else None
    return error


def violated_constraint(error: DatabaseError) -> str | None:
    """Returns the name of the violated constraint, or None. It leaves out the number that a shard
    adds: `uq_orders_owner_id_name_102021`.

    A coordinator passes on a worker's error without the name, which is in the message alone.
    """
    cause = database_cause(error)
    if not isinstance(cause, IntegrityConstraintViolationError):
        return None
    name = cause.constraint_name
    if name is None and (found := CONSTRAINT_IN_MESSAGE.search(str(cause))):
        name = found[1]
    return SHARD_SUFFIX.sub("", name) if name else None


def has_stale_plan(error: DatabaseError) -> bool:
    """Returns whether a migration has changed the columns of a statement since its connection
    prepared it. asyncpg prepares it again itself, but not in a transaction."""
    return isinstance(database_cause(error), InvalidCachedStatementError)


def is_read_only(error: DatabaseError) -> bool:
    """Returns whether the server, or the transaction, takes no changes, such as a primary that has
    become a standby."""
    return isinstance(database_cause(error), ReadOnlySQLTransactionError)


def is_worker_lost(error: BaseException) -> bool:
    """Returns whether the coordinator of a cluster has no connection to the worker of a
    statement."""
    cause = database_cause(error)
    states = (InternalServerError, PostgresIOError, ConnectionFailureError)
    return isinstance(cause, states) and bool(WORKER_LOST_MESSAGE.match(str(cause)))


def database_problem(
    error: DatabaseError, constraints: Mapping[str | None, Problem] = {}
) -> Problem | None:
    """Translates a database error into a problem: that of the violated constraint, by its name, or
    one for all; returns None for a bug in our code.

    Decides by SQLSTATE (PostgreSQL, appendix A): cancelled by a timeout, lock not available,
    deadlock and serialization failure; no connection, not admitted, no such database, too
    many connections, shutting down; data that PostgreSQL cannot hold.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return Unavailable(CONNECTION_LOST)
    if violated := constraints.get(violated_constraint(error)):
        return violated
    cause = database_cause(error)
    if has_stale_plan(error):
        return Unavailable("The database has just been migrated; please try again")
    if isinstance(cause, OSError):
        return Unavailable(UNREACHABLE)
    if is_worker_lost(error):
        return Unavailable(WORKER_LOST)
    state = cause.sqlstate if isinstance(cause, PostgresError) else None
    return _problem_of_state(state) if state else None


def _problem_of_state(state: str) -> Problem | None:
    if state == "57014":
        return Unavailable("The database took too long to answer; please try again")
    if state in {"55P03", "40P01", "40001"}:
        return Unavailable("The data is busy with another request; please try again")
    if state.startswith(("08", "28", "3D", "53", "57P")):
        return Unavailable("The database is not available; please try again")
    if state in {"22021", "22P05"}:
        return Unprocessable("The text has a character that cannot be stored")
    return None
