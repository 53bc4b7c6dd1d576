"""Chooses the owners whose rows a background task processes next."""

import random
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.db.sessions import WriteSession

ROWS_PER_PAGE = 1_000
FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)


class OwnersInTurn:
    """Goes from owner to owner, in the order of their ids, so that each has its turn.

    `due` is the condition, in SQL, of the rows that wait in the table, which is `t` there. A page
    of the index of owners is read at a time, so an owner with a million rows costs the others
    little; a recursive query could skip them, and a distributed table can have none.
    """

    def __init__(self, table: str, due: str) -> None:
        self._statement = text(f"""
SELECT owner_id, count(*) AS rows FROM (
    SELECT t.owner_id FROM {table} AS t
    WHERE t.owner_id > :after AND t.owner_id <= :until AND {due}
    ORDER BY t.owner_id LIMIT {ROWS_PER_PAGE}
) AS page GROUP BY owner_id ORDER BY owner_id
""")  # noqa: S608  # constants
        self._after = FIRST

    async def next(
        self, session: WriteSession, most: int, values: Mapping[str, Any] = {}
    ) -> list[UUID]:
        """Returns the next owners with due rows, at most so many, those with the fewest rows first;
        among equals in random order, so that processes meet seldom."""
        rows: dict[UUID, int] = {}
        for after, until in ((self._after, LAST), (FIRST, self._after)):
            while len(rows) < most and after < until:
                page = {**values, "after": after, "until": until}
                found = await session.fetch(self._statement, page)
                rows.update((row.owner_id, row.rows) for row in found[: most - len(rows)])
                after = found[-1].owner_id if found else until
        self._after = [*rows][-1] if rows else FIRST
        shuffled = random.sample([*rows], len(rows))
        return sorted(shuffled, key=lambda owner_id: rows[owner_id])
