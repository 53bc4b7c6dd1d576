"""Slots: a bounded number of things that may run at once, shared fairly between holders.

The holder of a request's slots is its account, or, without one, its client's network.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from math import ceil

import structlog

from shared.metrics import RATE_LIMITED
from shared.problems import RETRY_AFTER, SERVICE_BUSY, Problem, TooManyRequests, overloaded

MAX_STREAMS = 40  # uploads of a process, and downloads: each takes up to 8 MB of memory
PART_OF_ACCOUNT, PART_OF_NETWORK = 2 / 5, 1 / 2  # of the streams

current_holder: ContextVar[str | None] = ContextVar("current_holder", default=None)
"""The holder of the current request's slots. Background tasks have none."""

current_network: ContextVar[str | None] = ContextVar("current_network", default=None)
"""The network of the current request's client, which has a share beside those of accounts."""

log = structlog.get_logger(__name__)


class Slots:
    """Up to `size` slots. A holder has its share when it holds as many as are free: alone it gets
    half of them, n greedy holders get 1/(n+1) each, and as many stay free for the next. Where it
    may wait for a slot, a holder gets all but a fifth (at least one): a released slot goes to the
    waiting holder that holds the fewest.

    `most` bounds a share further, where slots are held for so long that it would shrink too late.
    Work without a holder is bounded by the size alone. `reason` names the slots in log and metrics,
    and `of` the requests or streams that hold them, in the detail of a problem.
    """

    def __init__(
        self, reason: str, size: int, *, most: int | None = None, of: str = "your requests"
    ) -> None:
        self.reason, self.size, self._most, self._of = reason, size, most or size, of
        self.in_use = 0
        self._held: dict[str | None, int] = {}
        self._waiting: dict[str | None, deque[asyncio.Future[bool]]] = {}

    def take(self, holder: str | None) -> "Slot":
        """Takes a slot at once.

        Raises:
            TooManyRequests: the holder holds its share.
            Unavailable: all slots are taken.
        """
        self.check(holder)
        self._hold(holder)
        return Slot(self, holder)

    def check(self, holder: str | None) -> None:
        """Raises as `take` would."""
        if not self._allows(holder):
            raise self._refusal(holder)

    @property
    def are_scarce(self) -> bool:
        """Whether half of the slots are taken; before that, none is refused."""
        return 2 * self.in_use >= self.size

    async def acquire(
        self,
        seconds: float,
        detail: str = SERVICE_BUSY,
        holders: "ContextVar[str | None]" = current_holder,
    ) -> str | None:
        """Waits for a slot for the current holder, and returns it, to be given to `release`.

        Raises:
            TooManyRequests: the holder has held its share for `seconds`.
            Unavailable: all slots have been taken for `seconds`.
        """
        holder = holders.get()
        if not self.acquire_now(holder) and not await self._wait(holder, seconds):
            log.warning("pool_exhausted", reason=self.reason, seconds=round(seconds, 1))
            raise self._refusal(holder, detail)
        return holder

    def acquire_now(self, holder: str | None) -> bool:
        """Holds a slot, to be given to `release`, if the holder would not have to wait for it."""
        allowed = self._allows_to_wait(holder)
        if allowed:
            self._hold(holder)
        return allowed

    async def _wait(self, holder: str | None, seconds: float) -> bool:
        """Returns whether a slot was given to the holder in time."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(seconds, _end_wait, waiter)  # takes less time than a timeout
        self._waiting.setdefault(holder, deque()).append(waiter)
        given = False
        try:
            given = await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.result():
                self.release(holder)
            raise
        finally:
            timer.cancel()
            if not given:
                self._forget(holder, waiter)
        return given

    def _forget(self, holder: str | None, waiter: "asyncio.Future[bool]") -> None:
        waiting = self._waiting.get(holder, ())
        if waiter in waiting:
            self._waiting[holder].remove(waiter)
        if not waiting:
            self._waiting.pop(holder, None)

    def release(self, holder: str | None) -> None:
        """Releases a slot, and gives it to the waiting holder that holds the fewest."""
        self.in_use -= 1
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]
        while self._waiting and not self._give_to_next():
            pass  # the next had given up

    def _give_to_next(self) -> bool:
        """Returns whether it gave a slot to the next that still waits, or none may have one."""
        allowed = [holder for holder in self._waiting if self._allows_to_wait(holder)]
        if not allowed:
            return True
        holder = min(allowed, key=lambda each: self._held.get(each, 0))
        waiter = self._waiting[holder].popleft()
        if not self._waiting[holder]:
            del self._waiting[holder]
        if waiter.done():
            return False
        self._hold(holder)
        waiter.set_result(True)
        return True

    def _allows(self, holder: str | None) -> bool:
        free = self.size - self.in_use
        if holder is None:
            return free > 0
        return self._held.get(holder, 0) < min(free, self._most)

    def _allows_to_wait(self, holder: str | None) -> bool:
        if self._held.get(holder, 0) < self._most and self.size - self.in_use > max(
            1, self.size // 5
        ):
            return True
        return self._allows(holder)

    def _hold(self, holder: str | None) -> None:
        self.in_use += 1
        self._held[holder] = self._held.get(holder, 0) + 1

    def _refusal(self, holder: str | None, detail: str = SERVICE_BUSY) -> Problem:
        held = self._held.get(holder, 0)
        if holder is None or held == 0 or (self.in_use >= self.size and held < self._most):
            return overloaded(self.reason, detail)
        RATE_LIMITED.labels(self.reason).inc()
        detail = f"Too many of {self._of} are under way; please try again when one has ended"
        return TooManyRequests(detail, headers=RETRY_AFTER)


def _end_wait(waiter: "asyncio.Future[bool]") -> None:
    if not waiter.done():
        waiter.set_result(False)


class Slot:
    """A slot that is held until it is released."""

    def __init__(self, slots: Slots, holder: str | None) -> None:
        self._slots, self.holder, self._held = slots, holder, True

    def pass_to(self, holder: str) -> None:
        """Has another holder hold the slot, if it has not been released.

        Raises:
            TooManyRequests: the other holder holds its share; the slot is free then.
        """
        if self._held and holder != self.holder:
            self.release()
            self._slots.take(holder)
            self.holder, self._held = holder, True

    def release(self) -> None:
        """Gives the slot back, once."""
        if self._held:
            self._held = False
            self._slots.release(self.holder)


class StreamSlots:
    """Slots for streams, which last as long as the client likes. An account has at most
    `PART_OF_ACCOUNT`, and all accounts of a network `PART_OF_NETWORK`; each has at least one."""

    def __init__(self, size: int, seconds: float) -> None:
        self._seconds, of = seconds, "the requests from your network"
        self._of_networks = Slots("streams", size, most=ceil(PART_OF_NETWORK * size), of=of)
        self._of_holders = Slots("streams", size, most=max(1, int(PART_OF_ACCOUNT * size)))

    @property
    def are_scarce(self) -> bool:
        """Whether more than three quarters of the slots are taken."""
        return 4 * self._of_holders.in_use > 3 * self._of_holders.size

    @asynccontextmanager
    async def hold(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Holds a slot, for which it waits for at most `seconds` (unless given, those of all).

        Raises:
            TooManyRequests: the account or the network has held its share for too long.
            Unavailable: no slot becomes free in time.
        """
        detail = "Too many uploads or downloads are under way; please try again"
        clock = asyncio.get_running_loop().time
        until = clock() + (self._seconds if seconds is None else seconds)
        shares = deque([(self._of_holders, current_holder), (self._of_networks, current_network)])
        # Who waits for the one holds nothing of the other, which others may have meanwhile.
        while True:
            (first, holders), (second, others) = shares
            holder, other = await first.acquire(until - clock(), detail, holders), others.get()
            if second.acquire_now(other):
                break
            first.release(holder)
            shares.rotate()
        try:
            yield
        finally:
            first.release(holder)
            second.release(other)
