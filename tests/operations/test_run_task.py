"""`python -m app run-task`."""

from uuid import UUID

import asyncpg

from tests.kit import Command

LONG_AGO = UUID(int=1)  # as a UUIDv7: in 1970
INSERT_DEAD_LETTER = f"""
INSERT INTO outgoing_mail (id, recipient, subject, sealed_body, next_attempt_at)
VALUES ('{LONG_AGO}', 'ada@example.com', 'a subject', '', NULL)
"""
STARTED_JUST_NOW = "INSERT INTO periodic_tasks VALUES ('delete_dead_letters', clock_timestamp())"


async def test_a_periodic_task_runs_now_though_it_is_not_due(
    command: Command, database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute(INSERT_DEAD_LETTER)
    await connection.execute(STARTED_JUST_NOW)
    result = await command("run-task", "delete_dead_letters")
    assert result.exit_code == 0, result.output
    assert await connection.fetchval("SELECT count(*) FROM outgoing_mail") == 0
    await connection.close()


async def test_an_unknown_task_is_named_with_the_known_ones(command: Command) -> None:
    result = await command("run-task", "delete_dead_leters")
    assert result.exit_code == 1
    assert "there is no task 'delete_dead_leters'" in result.output
    assert "delete_dead_letters" in result.output
