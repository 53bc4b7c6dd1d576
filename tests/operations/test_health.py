"""`/readyz` compares the revisions in the database with those of the code."""

import asyncio
from contextlib import AbstractAsyncContextManager
from unittest.mock import patch

import asyncpg
import pytest
from httpx import AsyncClient
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from app.main import create_app
from app.migrations import load_revisions
from app.ops import health
from shared.db import Database
from shared.settings import Settings
from tests.kit import connect, eventually, is_ready


async def test_a_migrated_database_is_ready(anonymous: AsyncClient) -> None:
    await eventually(lambda: is_ready(anonymous), "readiness", 30)
    assert (await anonymous.get("/readyz")).json() == {"status": "ok"}


async def test_a_schema_behind_the_code_is_not_ready(
    anonymous: AsyncClient, database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("DELETE FROM alembic_version")
    await connection.close()

    response = await anonymous.get("/readyz")

    assert response.status_code == 503
    assert "users_" in response.json()["detail"]


async def test_a_schema_ahead_of_the_code_is_ready(
    anonymous: AsyncClient, database_url: str
) -> None:
    """During a rollout the old code continues to serve on the new schema."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("DELETE FROM alembic_version")
    await connection.execute("INSERT INTO alembic_version VALUES ('users_from_the_future')")
    await connection.close()

    await eventually(lambda: is_ready(anonymous), "readiness", 30)


async def test_a_database_that_has_a_removed_feature_is_ready_and_says_so(
    settings: Settings, database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO alembic_version VALUES ('gone_0002'), ('users_9999')")
    await connection.close()

    app = create_app(settings)
    with capture_logs() as logged:
        async with app.router.lifespan_context(app), connect(app) as client:
            answers = [await client.get("/readyz") for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == {"status": "ok", "unknown_migrations": ["gone_0002", "users_9999"]}
    warnings = [entry["detail"] for entry in logged if entry["event"] == "unknown_migration"]
    assert len(warnings) == 2, "each is named once, at start"
    assert warnings[0].startswith("gone_0002 is of gone, which this code does not have; to drop")
    assert warnings[1] == "users_9999 is newer than this code"


async def test_what_a_feature_lacks_is_missed_beside_a_removed_one(
    anonymous: AsyncClient, database_url: str
) -> None:
    (head, *_) = load_revisions().get_heads(consider_depends_on=True)  # implied by no other
    connection = await asyncpg.connect(database_url)
    await connection.execute("DELETE FROM alembic_version")
    rows = [(row,) for row in ("gone_0002", *load_revisions().get_heads()) if row != head]
    await connection.executemany("INSERT INTO alembic_version VALUES ($1)", rows)
    await connection.close()

    answer = await anonymous.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["detail"] == f"The database lacks the migrations {head}"


async def test_what_a_recorded_revision_depends_on_is_not_missed(
    anonymous: AsyncClient, database_url: str
) -> None:
    """Alembic does not record a revision that a recorded one depends on."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("DELETE FROM alembic_version")
    await connection.execute("INSERT INTO alembic_version VALUES ('items_0001')")
    await connection.close()

    detail = (await anonymous.get("/readyz")).json()["detail"]

    head = load_revisions().get_revision("users@head")
    assert head
    assert head.revision in detail
    assert "items_0001" not in detail
    assert "users_0001" not in detail


async def test_many_who_ask_share_one_check(
    anonymous: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = 0
    probe = Database.probe

    def counted(database: Database) -> AbstractAsyncContextManager[AsyncConnection]:
        nonlocal checks
        checks += 1
        return probe(database)

    monkeypatch.setattr(health, "READINESS_TIMEOUT_SECONDS", 60.0)  # however busy the machine is
    with patch.object(Database, "probe", counted):
        answers = await asyncio.gather(*(anonymous.get("/readyz") for _ in range(600)))
    assert {answer.status_code for answer in answers} == {200}
    assert checks < 20
