"""The sessions that a request declares.

A write session is one transaction. It commits once, after the handler has returned and before the
first byte of the response is sent, so a 2xx means committed. An ORM session is SQLAlchemy's view of
the same transaction, with its identity map, which costs as much as a few statements.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import HTTPConnection

from shared.db import sessions
from shared.db.database import database_of


async def _read_session(request: HTTPConnection) -> sessions.ReadSession:
    return database_of(request.app).read(request)


async def _write_session(request: HTTPConnection) -> AsyncIterator[sessions.WriteSession]:
    if request.scope["type"] == "websocket":
        raise RuntimeError("A websocket stays open: use database.transaction() for each message")
    async with database_of(request.app).transaction() as session:
        yield session


async def _snapshot_session(request: Request) -> AsyncIterator[sessions.SnapshotSession]:
    database = database_of(request.app)
    async with database.download_slots.hold(), database.snapshot(request) as session:
        yield session


ReadSession = Annotated[sessions.ReadSession, Depends(_read_session)]
"""Read-only, in autocommit mode: each statement sees the newest snapshot; returns rows. It reads
from the replica where one is set, except for clients that have just written."""

WriteSession = Annotated[sessions.WriteSession, Depends(_write_session, scope="function")]
"""One transaction, committed before the response is sent; returns rows, not objects."""


async def _orm_session(session: WriteSession) -> AsyncSession:
    return session.orm


OrmSession = Annotated[AsyncSession, Depends(_orm_session, scope="function")]
"""The ORM's view of the request's transaction, to change objects; handlers flush, never commit."""

SnapshotSession = Annotated[sessions.SnapshotSession, Depends(_snapshot_session, scope="request")]
"""One read-only snapshot for a streamed response, for at most `APP_DATABASE_SNAPSHOT_TIMEOUT`.

At most `MAX_STREAMS` (shared/slots.py) run at once, and half as many as connections have a
snapshot; of both an account has two fifths, and a network half: declare it after the principal."""
