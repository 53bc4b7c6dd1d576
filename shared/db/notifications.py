"""NOTIFY after a commit, to wake the background tasks of all processes.

PostgreSQL serialises the commits of transactions that notify. So no transaction that writes rows
does: a separate statement follows the commit, one for all commits since the last. A notification
that is lost, with its process, delays work until the tasks look again by themselves.
"""

import asyncio
from collections.abc import Iterable
from contextvars import Context

import structlog
from asyncpg import PostgresError
from sqlalchemy import text

from shared.db.pool import CLOSE_TIMEOUT_SECONDS
from shared.db.sessions import ReadSession
from shared.problems import Problem

NOTIFY = text("SELECT pg_notify(channel, '') FROM unnest(CAST(:channels AS text[])) AS channel")

log = structlog.get_logger(__name__)


class Notifier:
    """Sends notifications, one statement at a time."""

    def __init__(self, session: ReadSession) -> None:
        self._session = session
        self._channels: set[str] = set()
        self._sending: asyncio.Task[None] | None = None

    def notify(self, channels: Iterable[str]) -> None:
        """Notifies these channels soon; returns at once."""
        self._channels.update(channels)
        if self._channels and (self._sending is None or self._sending.done()):
            self._sending = asyncio.create_task(self._send(), context=Context())  # of no request

    async def close(self) -> None:
        """Waits for the statement under way, for a bounded time."""
        if self._sending:
            await asyncio.wait([self._sending], timeout=CLOSE_TIMEOUT_SECONDS)
            self._sending.cancel()

    async def _send(self) -> None:
        while self._channels:
            channels, self._channels = sorted(self._channels), set()
            try:
                await self._session.fetch(NOTIFY, {"channels": channels})
            except (Problem, PostgresError) as error:
                log.warning("notification_lost", channels=channels, reason=str(error))
