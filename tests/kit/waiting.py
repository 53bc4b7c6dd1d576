"""Waits with a timeout in seconds, and an error that names the awaited event."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

POLL_SECONDS = 0.02

T = TypeVar("T")


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Limits the time of the block: `async with within(10, "the answer"): await answer`.

    Raises:
        AssertionError: the block did not end in time.
    """
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            yield
    except TimeoutError as error:
        if timeout.expired():
            raise _did_not_come(what, seconds) from error
        raise


@overload
async def eventually(holds: Callable[[], Awaitable[T]], what: str, seconds: float = ...) -> T: ...


@overload
async def eventually(holds: Callable[[], T], what: str, seconds: float = ...) -> T: ...


async def eventually(holds: Callable[[], Any], what: str, seconds: float = 10) -> Any:
    """Calls `holds` repeatedly, and returns its first true result.

    Raises:
        AssertionError: `holds` returned nothing true within `seconds`.
    """
    async with within(seconds, what):
        while True:
            result = holds()
            found = await result if inspect.isawaitable(result) else result
            if found:
                return found
            await asyncio.sleep(POLL_SECONDS)


def wait_until(holds: Callable[[], T], what: str, seconds: float = 10) -> T:
    """Does the same as `eventually`, in code that is not async.

    Raises:
        AssertionError: `holds` returned nothing true within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise _did_not_come(what, seconds)
        time.sleep(POLL_SECONDS)
    return found


def _did_not_come(what: str, seconds: float) -> AssertionError:
    return AssertionError(f"{what} did not come within {seconds:g} s")
