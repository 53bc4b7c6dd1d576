"""Background tasks choose the owners whose rows they process, each in turn."""

from uuid import UUID

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from shared.db import database_of, owners
from shared.db.owners import OwnersInTurn

OWNERS = [UUID(int=number) for number in range(1, 6)]
INSERT_CHANGES = text("""
INSERT INTO outbox_changes (owner_id, topic, kind, ids, waiting)
SELECT CAST(:owner AS uuid), 'things', 'created', '{}', '{}' FROM generate_series(1, :rows)
""")


@pytest.mark.parametrize("page", [1, 2, 1_000])
async def test_each_owner_has_its_turn_however_many_rows_another_has(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(owners, "ROWS_PER_PAGE", page)
    in_turn = OwnersInTurn("outbox_changes", "t.topic = :topic")
    values = {"topic": "things"}
    async with database_of(app).transaction() as session:
        assert await in_turn.next(session, 2, values) == []
        for rows, owner in enumerate(OWNERS, start=1):
            await session.execute(INSERT_CHANGES, {"owner": owner, "rows": rows})
        turns = [set(await in_turn.next(session, 2, values)) for _ in range(4)]
        everybody = await in_turn.next(session, 10, values)
    first, second, third, fourth, fifth = OWNERS
    assert turns == [{first, second}, {third, fourth}, {fifth, first}, {second, third}]
    assert set(everybody) == set(OWNERS)
    if page > len(OWNERS):
        assert everybody == OWNERS, "those with the fewest rows come first"


async def test_each_set_of_values_has_its_own_turns(app: FastAPI) -> None:
    in_turn = OwnersInTurn("outbox_changes", "t.topic = 'things' AND CAST(:model AS integer) > 0")
    async with database_of(app).transaction() as session:
        for owner in OWNERS[:4]:
            await session.execute(INSERT_CHANGES, {"owner": owner, "rows": 1})
        turns = [set(await in_turn.next(session, 2, {"model": model})) for model in (1, 2, 1, 2)]
    assert turns == [{*OWNERS[:2]}, {*OWNERS[:2]}, {*OWNERS[2:4]}, {*OWNERS[2:4]}]
