"""`/readyz` compares the revisions in the database with those of the code."""

import asyncpg
from httpx import AsyncClient

from tests.kit import eventually, is_ready


async def test_a_migrated_database_is_ready(anonymous: AsyncClient) -> None:
    await eventually(lambda: is_ready(anonymous), "readiness", 30)


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


async def test_what_a_recorded_revision_depends_on_is_not_missed(
    anonymous: AsyncClient, database_url: str
) -> None:
    """Alembic does not record a revision that a recorded one depends on."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("DELETE FROM alembic_version")
    await connection.execute("INSERT INTO alembic_version VALUES ('items_0001')")
    await connection.close()

    detail = (await anonymous.get("/readyz")).json()["detail"]

    assert "users_0002" in detail
    assert "items_0001" not in detail
    assert "users_0001" not in detail
