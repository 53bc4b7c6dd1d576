"""Uploads: a request body of any length, as a stream of chunks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from shared.db import database_of
from shared.problems import RequestTimeout
from shared.slots import StreamSlots
from shared.web.deadlines import MIN_BYTES_PER_SECOND, STALL_SECONDS, extend_deadline

MIN_IF_SCARCE = 10_000  # bytes a second: the slowest uploads give way to others


async def _upload(request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
    seconds: float = request.app.state.settings.stream_timeout
    slots = database_of(request.app).upload_slots
    async with slots.hold():
        yield _while_it_comes(request.stream(), request.state.deadline, seconds, slots)


async def _while_it_comes(
    pieces: AsyncIterator[bytes], deadline: asyncio.Timeout, seconds: float, slots: StreamSlots
) -> AsyncIterator[bytes]:
    """Yields the chunks of an upload; each read extends the request's deadline.

    Raises:
        RequestTimeout: no chunk arrives within `STALL_SECONDS`, less than `MIN_BYTES_PER_SECOND`
            over about as long (`MIN_IF_SCARCE` while slots are scarce), or not all within
            `seconds`.
    """
    clock = asyncio.get_running_loop().time
    ends_at, waited, came = clock() + seconds, 0.0, 0
    while True:
        extend_deadline(deadline)
        asked_at = clock()
        try:
            async with asyncio.timeout_at(min(asked_at + STALL_SECONDS, ends_at)):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if clock() >= ends_at:
                raise RequestTimeout(f"An upload may take {seconds:g} s") from None
            raise RequestTimeout(f"Nothing more came within {STALL_SECONDS:g} s") from None
        waited, came = waited + clock() - asked_at, came + len(piece)
        if waited >= STALL_SECONDS:
            least = MIN_IF_SCARCE if slots.are_scarce else MIN_BYTES_PER_SECOND
            if came < waited * least:
                raise RequestTimeout(f"Less than {least:,} bytes a second came")
            waited, came = 0.0, 0
        yield piece


Upload = Annotated[AsyncIterator[bytes], Depends(_upload, scope="function")]
"""A request body of any length, as a stream of chunks.

Reading it extends the request's deadline, up to `APP_STREAM_TIMEOUT`. At most `MAX_STREAMS`
(shared/slots.py) run at once, a part of these for one account and for one network:
declare it after the principal. One that stalls or trickles gets 408. Hold no transaction while it
comes, and end with a `database.long_transaction()`, if that may take more than a second.
"""
