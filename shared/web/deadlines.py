"""Extends the deadline of a request while it streams (app/middleware/deadline.py sets it)."""

import asyncio

STALL_SECONDS = 30.0  # a client may send or accept nothing for this long in a stream
STREAM_SECONDS = 1000.0  # a stream may stall for this long; PostgreSQL ends an import sooner


def extend_deadline(deadline: asyncio.Timeout) -> None:
    """Gives a request with this deadline, its `state.deadline`, another `STREAM_SECONDS`."""
    if not deadline.expired():
        deadline.reschedule(asyncio.get_running_loop().time() + STREAM_SECONDS)
