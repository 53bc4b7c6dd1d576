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
    """Goes from owner to owner, in the order of their ids, so that each has its turn: once for each
    set of values of the parameters in `due`.

    `due` is the SQL condition of the rows to process; the table is `t` in it. Each query reads a
    page of the index of owners, so an owner with a million rows costs the others little. A
    recursive query could skip those rows, but Citus runs none on a distributed table.
    """

    def __init__(self, table: str, due: str) -> None:
        self._statement = text(f"""
SELECT owner_id, count(*) AS rows FROM (
    SELECT t.owner_id FROM {table} AS t
    WHERE t.owner_id > :after AND t.owner_id <= :until AND {due}
    ORDER BY t.owner_id LIMIT {ROWS_PER_PAGE}
) AS page GROUP BY owner_id ORDER BY owner_id
""")  # noqa: S608  # constants
        self._after: dict[frozenset[tuple[str, Any]], UUID] = {}

    async def next(
        self, session: WriteSession, most: int, values: Mapping[str, Any] = {}
    ) -> list[UUID]:
        """Returns up to `most` owners with due rows, those with the fewest rows first; equals in
        random order, so that two processes seldom choose the same."""
        rows: dict[UUID, int] = {}
        key = frozenset(values.items())
        last = self._after.get(key, FIRST)
        for after, until in ((last, LAST), (FIRST, last)):
            while len(rows) < most and after < until:
                page = {**values, "after": after, "until": until}
                found = await session.fetch(self._statement, page)
                rows.update((row.owner_id, row.rows) for row in found[: most - len(rows)])
                after = found[-1].owner_id if found else until
        self._after[key] = [*rows][-1] if rows else FIRST
        shuffled = random.sample([*rows], len(rows))
        return sorted(shuffled, key=lambda owner_id: rows[owner_id])
