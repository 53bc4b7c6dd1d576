"""Extends the deadline of a request while it streams (app/middleware/deadline.py sets it)."""

import asyncio
import math

STALL_SECONDS = 30.0  # a client may send or accept nothing for this long in a stream
MIN_BYTES_PER_SECOND = 1_000  # over so many seconds; one that is slower holds its slot for nothing
STREAM_SECONDS = 1000.0  # a stream may stall for this long; PostgreSQL ends an import sooner


def extend_deadline(deadline: asyncio.Timeout, latest: float = math.inf) -> None:
    """Gives a request with this deadline, its `state.deadline`, another `STREAM_SECONDS`, but none
    after `latest`, by the clock of the event loop."""
    if not deadline.expired():
        now = asyncio.get_running_loop().time()
        deadline.reschedule(min(now + STREAM_SECONDS, latest))
