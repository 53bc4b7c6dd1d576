"""Slots: a bounded number of things that may run at once, shared fairly between owners.

The owner of a request is its account, or, without one, the network of its client's address.
"""

import asyncio
from contextvars import ContextVar

import structlog

from shared.metrics import RATE_LIMITED
from shared.problems import SERVICE_BUSY, Problem, TooManyRequests, overloaded

RETRY_AFTER = {"Retry-After": "1"}

current_owner: ContextVar[str | None] = ContextVar("current_owner", default=None)
"""The owner of the request that is being answered. Background tasks have none."""

log = structlog.get_logger(__name__)


class Slots:
    """Up to `size` slots. An owner has its share when it holds as many as are free: alone it gets
    half of them, and n owners that take what they can come to 1/(n+1) each, with as much left for
    the next.

    `most` bounds a share further, where slots are held for so long that it would shrink too late.
    Work without an owner is bound by the size alone. `reason` names the slots in log and metrics.
    """

    def __init__(self, reason: str, size: int, *, most: int | None = None) -> None:
        self.reason, self.size, self._most = reason, size, most or size
        self.in_use = 0
        self._held: dict[str | None, int] = {}
        self._waiting: dict[asyncio.Future[None], str | None] = {}

    def take(self, owner: str | None) -> "Slot":
        """Takes a slot at once.

        Raises:
            TooManyRequests: the owner holds its share.
            Unavailable: all slots are taken.
        """
        if not self._allows(owner):
            raise self._refusal()
        self._hold(owner)
        return Slot(self, owner)

    async def acquire(self, seconds: float, detail: str = SERVICE_BUSY) -> str | None:
        """Waits for a slot, and returns the current owner, which `release` is to be given.

        Raises:
            TooManyRequests: the owner has held its share for `seconds`.
            Unavailable: all slots have been taken for `seconds`.
        """
        owner = current_owner.get()
        if self._allows(owner):
            self._hold(owner)
            return owner
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = owner
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # given to one that has just given up
                self.release(owner)
            if not isinstance(error, TimeoutError):
                raise
            log.warning("pool_exhausted", reason=self.reason, seconds=seconds)
            raise self._refusal(detail) from None
        finally:
            del self._waiting[waiter]
        return owner

    def release(self, owner: str | None) -> None:
        """Gives a slot back. The next to have it is, of those who wait, the owner of the fewest."""
        self.in_use -= 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        if self._waiting:
            self._give_to_next()

    def _give_to_next(self) -> None:
        waiting = (
            (self._held.get(owner, 0), number, waiter, owner)
            for number, (waiter, owner) in enumerate(self._waiting.items())
            if not waiter.done() and self._allows(owner)
        )
        _, _, waiter, owner = min(waiting, default=(0, 0, None, None))
        if waiter:
            self._hold(owner)
            waiter.set_result(None)

    def _allows(self, owner: str | None) -> bool:
        free = self.size - self.in_use
        if owner is None:
            return free > 0
        return self._held.get(owner, 0) < min(free, self._most)

    def _hold(self, owner: str | None) -> None:
        self.in_use += 1
        self._held[owner] = self._held.get(owner, 0) + 1

    def _refusal(self, detail: str = SERVICE_BUSY) -> Problem:
        if self.in_use >= self.size:
            return overloaded(self.reason, detail)
        RATE_LIMITED.labels(self.reason).inc()
        detail = "Too many of your requests are under way; please try again when one has ended"
        return TooManyRequests(detail, headers=RETRY_AFTER)


class Slot:
    """A slot that is held until it is released."""

    def __init__(self, slots: Slots, owner: str | None) -> None:
        self._slots, self.owner, self._held = slots, owner, True

    def pass_to(self, owner: str) -> None:
        """Has another owner hold the slot, if it has not been released.

        Raises:
            TooManyRequests: the other owner holds its share; nobody holds the slot then.
        """
        if self._held and owner != self.owner:
            self.release()
            self._slots.take(owner)
            self.owner, self._held = owner, True

    def release(self) -> None:
        """Gives the slot back, once."""
        if self._held:
            self._held = False
            self._slots.release(self.owner)
