"""Expired rows are deleted in batches, until none is left."""

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.users.sessions import tasks
from tests.kit import run_until_idle
from tests.kit.servers import execute

EXPIRE = """
INSERT INTO sessions (id, user_id, address, user_agent, expires_at)
SELECT gen_random_uuid(), id, '', '', now() - interval '1 minute'
FROM users, generate_series(1, 5)
"""


async def test_ended_sessions_are_deleted_batch_by_batch(
    client: AsyncClient, app: FastAPI, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BATCH_SIZE", 2)
    await execute(database_url, EXPIRE)
    assert await run_until_idle(app, tasks.purge_expired_sessions) == 5
    assert (await client.get("/users/me")).status_code == 200
    await execute(database_url, EXPIRE)
    assert await tasks.purge_expired_sessions.run(app) == 2
