"""Uploads: a request body of any length, as a stream of chunks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from shared.db import database_of
from shared.problems import RequestTimeout
from shared.web.deadlines import STALL_SECONDS, extend_deadline


async def _upload(request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
    database = database_of(request.app)
    async with database.stream_slot(database.upload_slots):
        yield _while_it_comes(request.stream(), request.state.deadline)


async def _while_it_comes(
    pieces: AsyncIterator[bytes], deadline: asyncio.Timeout
) -> AsyncIterator[bytes]:
    """Yields the chunks of an upload; each read extends the request's deadline.

    Raises:
        RequestTimeout: no chunk arrives within `STALL_SECONDS`.
    """
    while True:
        extend_deadline(deadline)
        try:
            async with asyncio.timeout(STALL_SECONDS):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RequestTimeout(f"Nothing more came within {STALL_SECONDS:g} s") from None
        yield piece


Upload = Annotated[AsyncIterator[bytes], Depends(_upload, scope="function")]
"""A request body of any length, as a stream of chunks.

Reading it extends the request's deadline. Run a query before, so that a dead database connection
is noticed as early as in other requests. At most half as many uploads as write connections run at
once; one that stalls gets 408.
"""
