"""Finds the rows for which a batch fails: tries its parts, until those rows are alone."""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import accumulate
from typing import TypeVar

from asyncpg import PostgresError

PARTS_OF_A_FAILED_BATCH = 8
PARTS_SECONDS = 30.0  # for the parts of one batch; then others have their turn
QUERY_CANCELLED = "57014"
CLASSES_OF_ROWS = {"21", "22", "23", "54", "XX"}  # SQLSTATE (PostgreSQL, appendix A)

Entry = TypeVar("Entry")


def take(rows: Sequence[Entry], size: Callable[[Entry], int], most: int) -> Sequence[Entry]:
    """Returns the first rows, at least one if there are any, whose sizes add up to `most`."""
    return rows[: max(1, sum(so_far <= most for so_far in accumulate(map(size, rows))))]


def split(batch: Sequence[Entry]) -> list[Sequence[Entry]]:
    """Splits a failed batch into parts, to be tried one by one."""
    size = -(-len(batch) // PARTS_OF_A_FAILED_BATCH)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


async def run_parts(
    parts: Iterable[Sequence[Entry]], run: Callable[[Sequence[Entry]], Awaitable[int]]
) -> int:
    """Runs the parts of a failed batch, and returns how many rows they processed. After
    `PARTS_SECONDS` the rest is left to a later batch."""
    done, until = 0, time.monotonic() + PARTS_SECONDS
    for part in parts:
        done += await run(part)
        if time.monotonic() > until:
            break
    return done


def blames_rows(error: PostgresError) -> bool:
    """Returns whether a statement failed because of its rows: their values, or their number, where
    it took too long. Locks, memory and the server are to blame for other errors."""
    state = error.sqlstate or ""
    return state == QUERY_CANCELLED or state[:2] in CLASSES_OF_ROWS
