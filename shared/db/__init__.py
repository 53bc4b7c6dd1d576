"""The database: the sessions that requests declare and handlers take, and the database itself."""

from shared.db.database import Database, database_of
from shared.db.dependencies import OrmSession, ReadSession, SnapshotSession, WriteSession
from shared.db.pool import Row
from shared.db.sessions import write_session_of

__all__ = [
    "Database",
    "OrmSession",
    "ReadSession",
    "Row",
    "SnapshotSession",
    "WriteSession",
    "database_of",
    "write_session_of",
]
