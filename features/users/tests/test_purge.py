"""Expired rows are deleted in batches, until none is left."""

from datetime import timedelta

import pytest
import time_machine
from fastapi import FastAPI
from httpx import AsyncClient

from features.users.sessions import tasks
from features.users.tests.conftest import Execute
from tests.kit import run_until_idle

EXPIRE = """
INSERT INTO sessions (id, user_id, address, user_agent, expires_at)
SELECT gen_random_uuid(), id, '', '', now() - interval '1 minute'
FROM users, generate_series(1, 5)
"""


async def test_ended_sessions_are_deleted_batch_by_batch(
    client: AsyncClient, app: FastAPI, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BATCH_SIZE", 2)
    await execute(EXPIRE)
    assert await run_until_idle(app, tasks.purge_expired_sessions) == 5
    assert (await client.get("/users/me")).status_code == 200
    await execute(EXPIRE)
    assert await tasks.purge_expired_sessions.run(app) == 2


async def test_a_process_whose_clock_is_ahead_deletes_no_recent_revocation(
    client: AsyncClient, app: FastAPI, execute: Execute
) -> None:
    assert (await client.delete("/users/me")).status_code == 204
    revoked = await execute("SELECT id FROM revocations")
    assert revoked
    with time_machine.travel(timedelta(hours=3), tick=True):
        await run_until_idle(app, tasks.purge_expired_sessions)
    assert await execute("SELECT id FROM revocations") == revoked
