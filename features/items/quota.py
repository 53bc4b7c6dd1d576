"""How much an account has stored, and the most that it may.

Counting takes time in proportion to the number of an owner's items, and a counter in a row would
make each write of an owner wait for the one before. So each process keeps an estimate in memory:
its last count, and the items added since. It counts again before it adds more than a thousandth
of the limit. Close to a limit the writes of an owner wait for each other, and each counts again,
unless a count is slow. So each process has added at most a thousandth of the limit that others have
not counted, and adds as much at the moment: n processes exceed a limit by at most 2n thousandths.

It has a separate route, and is not in `GET /users/me`: accounts know no items, the kernel would
need a way for features to add fields to each other's answers, and that route counts nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from uuid import UUID

from fastapi import FastAPI
from sqlalchemy import bindparam, func, select, text

from features.items.schemas import ItemCreate, ItemUpdate, Usage
from features.items.settings import ItemsSettings
from features.items.tables import ITEMS
from shared.db import ReadSession, WriteSession
from shared.db.locks import advisory_lock
from shared.problems import Forbidden
from shared.state import settings_of

MAX_ESTIMATES = 10_000
MIN_MARGIN = 100  # this close to a limit each write counts (or 0.1 % of the limit, if that is more)
SLOW_COUNT_SECONDS = 0.1
PAUSE_FACTOR = 50  # after a slow count small additions wait 50 times its duration for another
LOCK_USAGE = text("SELECT pg_advisory_xact_lock(CAST(:key AS bigint))")
TEXT_COLUMNS = (ITEMS.c.title, ITEMS.c.description, ITEMS.c.external_id)

TEXT_BYTES = reduce(add, (func.coalesce(func.octet_length(each), 0) for each in TEXT_COLUMNS))
COUNT_ITEMS = select(
    func.count().label("count"), func.coalesce(func.sum(TEXT_BYTES), 0).label("text_bytes")
).where(ITEMS.c.owner_id == bindparam("owner_id"))


@dataclass
class _Estimate:
    """The last count, with the additions of this process since, and without."""

    items: int = 0
    text_bytes: int = 0
    counted_items: int = 0
    counted_text_bytes: int = 0
    next_count_at: float = 0.0
    count_started_at: float = 0.0
    count_lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quota:
    """The most that an account may store, as the settings say."""

    def __init__(self, settings: ItemsSettings) -> None:
        self.max_items, self.max_text_bytes = settings.max_items, settings.max_items_text
        self._estimates: dict[UUID, _Estimate] = {}

    async def check(
        self, session: WriteSession, owner_id: UUID, *, items: int, text_bytes: int
    ) -> None:
        """Checks the additions of a transaction, at its end; `text_bytes` may be an upper bound.

        Raises:
            Forbidden: the additions would put the account over its limit.
        """
        known = self._estimate_of(owner_id)
        known.items += items
        known.text_bytes += text_bytes
        if self._is_count_due(known):
            key = advisory_lock("items.quota", owner_id)
            await session.execute(LOCK_USAGE, {"key": key})
            await self._count(session, owner_id, known)
        if exceeded := self._exceeded(known):
            known.items -= items  # the transaction is rolled back
            known.text_bytes -= text_bytes
            raise Forbidden(f"An account may have {exceeded}")

    def _is_count_due(self, known: _Estimate) -> bool:
        is_near_limit = not known.count_started_at
        for estimate, counted, limit in (
            (known.items, known.counted_items, self.max_items),
            (known.text_bytes, known.counted_text_bytes, self.max_text_bytes),
        ):
            if estimate - counted > limit // 1_000:
                return True
            is_near_limit |= estimate > limit - max(MIN_MARGIN, limit // 1_000)
        return is_near_limit and time.monotonic() >= known.next_count_at

    def _exceeded(self, known: _Estimate) -> str | None:
        if known.items > self.max_items:
            return f"{self.max_items:,} items"
        if known.text_bytes > self.max_text_bytes:
            return f"{self.max_text_bytes:,} bytes of text in its items"
        return None

    async def usage(self, session: ReadSession, owner_id: UUID) -> Usage:
        """Returns what an account has, and may have."""
        known, asked_at = self._estimate_of(owner_id), time.monotonic()
        async with known.count_lock:  # concurrent calls share one count
            if asked_at >= max(known.next_count_at, known.count_started_at):
                await self._count(session, owner_id, known)
        return Usage(
            items=known.items,
            max_items=self.max_items,
            text_bytes=known.text_bytes,
            max_text_bytes=self.max_text_bytes,
        )

    def _estimate_of(self, owner_id: UUID) -> _Estimate:
        if owner_id not in self._estimates and len(self._estimates) >= MAX_ESTIMATES:
            self._estimates.clear()
        return self._estimates.setdefault(owner_id, _Estimate())

    async def _count(self, session: ReadSession, owner_id: UUID, known: _Estimate) -> None:
        started = time.monotonic()
        [found] = await session.fetch(COUNT_ITEMS, {"owner_id": owner_id})
        known.count_started_at = started
        seconds = time.monotonic() - started
        known.items = known.counted_items = found["count"]
        known.text_bytes = known.counted_text_bytes = int(found.text_bytes)
        if seconds > SLOW_COUNT_SECONDS:
            known.next_count_at = started + PAUSE_FACTOR * seconds


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[Quota]:
    yield Quota(settings_of(app, ItemsSettings))


def text_bytes_of(item: ItemCreate | ItemUpdate) -> int:
    """Returns the size in UTF-8 bytes of the texts that are set in an item."""
    given = (getattr(item, column.name) for column in TEXT_COLUMNS)
    return sum(len(value.encode()) for value in given if isinstance(value, str))
