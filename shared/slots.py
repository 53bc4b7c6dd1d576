"""Slots: a bounded number of things that may run at once, shared fairly between holders.

The holder of what a request needs is its account, or, without one, its client's network.
"""

import asyncio
from contextvars import ContextVar

import structlog

from shared.metrics import RATE_LIMITED
from shared.problems import SERVICE_BUSY, Problem, TooManyRequests, overloaded

RETRY_AFTER = {"Retry-After": "1"}

current_holder: ContextVar[str | None] = ContextVar("current_holder", default=None)
"""The holder of what the current request needs. Background tasks have none."""

log = structlog.get_logger(__name__)


class Slots:
    """Up to `size` slots. A holder has its share when it holds as many as are free: alone it gets
    half of them, and n holders that take what they can come to 1/(n+1) each, with as much left for
    the next.

    `most` bounds a share further, where slots are held for so long that it would shrink too late.
    Work without a holder is bound by the size alone. `reason` names the slots in log and metrics.
    """

    def __init__(self, reason: str, size: int, *, most: int | None = None) -> None:
        self.reason, self.size, self._most = reason, size, most or size
        self.in_use = 0
        self._held: dict[str | None, int] = {}
        self._waiting: dict[asyncio.Future[None], str | None] = {}

    def take(self, holder: str | None) -> "Slot":
        """Takes a slot at once.

        Raises:
            TooManyRequests: the holder holds its share.
            Unavailable: all slots are taken.
        """
        if not self._allows(holder):
            raise self._refusal()
        self._hold(holder)
        return Slot(self, holder)

    async def acquire(self, seconds: float, detail: str = SERVICE_BUSY) -> str | None:
        """Waits for a slot for the current holder, and returns it, to be given to `release`.

        Raises:
            TooManyRequests: the holder has held its share for `seconds`.
            Unavailable: all slots have been taken for `seconds`.
        """
        holder = current_holder.get()
        if self._allows(holder):
            self._hold(holder)
            return holder
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = holder
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # given to one that has just given up
                self.release(holder)
            if not isinstance(error, TimeoutError):
                raise
            log.warning("pool_exhausted", reason=self.reason, seconds=seconds)
            raise self._refusal(detail) from None
        finally:
            del self._waiting[waiter]
        return holder

    def release(self, holder: str | None) -> None:
        """Gives a slot back. Of those who wait, it then goes to the holder of the fewest."""
        self.in_use -= 1
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]
        if self._waiting:
            self._give_to_next()

    def _give_to_next(self) -> None:
        waiting = (
            (self._held.get(holder, 0), number, waiter, holder)
            for number, (waiter, holder) in enumerate(self._waiting.items())
            if not waiter.done() and self._allows(holder)
        )
        _, _, waiter, holder = min(waiting, default=(0, 0, None, None))
        if waiter:
            self._hold(holder)
            waiter.set_result(None)

    def _allows(self, holder: str | None) -> bool:
        free = self.size - self.in_use
        if holder is None:
            return free > 0
        return self._held.get(holder, 0) < min(free, self._most)

    def _hold(self, holder: str | None) -> None:
        self.in_use += 1
        self._held[holder] = self._held.get(holder, 0) + 1

    def _refusal(self, detail: str = SERVICE_BUSY) -> Problem:
        if self.in_use >= self.size:
            return overloaded(self.reason, detail)
        RATE_LIMITED.labels(self.reason).inc()
        detail = "Too many of your requests are under way; please try again when one has ended"
        return TooManyRequests(detail, headers=RETRY_AFTER)


class Slot:
    """A slot that is held until it is released."""

    def __init__(self, slots: Slots, holder: str | None) -> None:
        self._slots, self.holder, self._held = slots, holder, True

    def pass_to(self, holder: str) -> None:
        """Has another holder hold the slot, if it has not been released.

        Raises:
            TooManyRequests: the other holder holds its share; nobody holds the slot then.
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
