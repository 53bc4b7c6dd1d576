"""Uploads: a request body of any length, as a stream of chunks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request

from shared.db import database_of
from shared.problems import RequestTimeout
from shared.state import resource, state_of
from shared.web.deadlines import STALL_SECONDS, extend_deadline


@dataclass(frozen=True)
class UploadSlots:
    """Half as many slots as there are connections for transactions, and at least one: uploads last
    long, and leave the other connections to other requests."""

    slots: asyncio.Semaphore


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[UploadSlots]:
    connections = state_of(app).settings.database_pool_size
    yield UploadSlots(asyncio.Semaphore(max(1, connections // 2)))


async def _upload(
    request: Request, uploads: Annotated[UploadSlots, resource(UploadSlots)]
) -> AsyncIterator[AsyncIterator[bytes]]:
    async with database_of(request.app).stream_slot(uploads.slots):
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
