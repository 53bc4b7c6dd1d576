"""The most that one statement of a search may take."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Executable

from shared.db import ReadSession, Row
from shared.problems import Unavailable

SEARCH_SECONDS = 5.0


async def fetch_in_time(
    session: ReadSession, statement: Executable, values: Mapping[str, Any]
) -> Sequence[Row]:
    """Returns the rows of a statement, and cancels it after `SEARCH_SECONDS`.

    Raises:
        Unavailable: it took longer.
    """
    try:
        async with asyncio.timeout(SEARCH_SECONDS):
            return await session.fetch(statement, values)
    except TimeoutError:
        raise Unavailable(
            f"The search took more than {SEARCH_SECONDS:g} s; fewer words, a smaller limit, or a "
            "filter make it faster"
        ) from None
