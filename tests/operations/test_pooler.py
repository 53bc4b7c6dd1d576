"""The service behind pgbouncer in transaction mode, where each transaction may use a different
server connection."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest
from asyncpg.exceptions import ReadOnlySQLTransactionError
from fastapi import FastAPI
from httpx import AsyncClient
from sqlalchemy import text

from app.main import create_app
from shared.db import database_of
from shared.settings import Settings
from tests.kit import SignUp, connect, free_port
from tests.operations.pooler import CONNECTIONS, pooled_url, pooler
from tests.serving import ROOT, environment

pytestmark = pytest.mark.verify

__all__ = ["pooled_url", "pooler"]

LISTENING = 3  # direct: one per process, and one for background work
CLIENTS = 8


@pytest.fixture
def settings(settings: Settings, pooled_url: str, database_url: str) -> Settings:
    update = {
        "database_url": pooled_url,
        "database_direct_url": database_url,
        "database_pool_size": 2 * CLIENTS,  # half of the slots are for streams
    }
    return settings.model_copy(update=update)


@pytest.fixture
async def elsewhere(settings: Settings) -> AsyncIterator[AsyncClient]:
    """A client of a second application with its own pool and background tasks, like another
    process."""
    async with AsyncExitStack() as stack:
        app = create_app(settings)
        await stack.enter_async_context(app.router.lifespan_context(app))
        yield await stack.enter_async_context(connect(app))


async def test_everything_works_for_more_clients_than_connections(
    sign_up: SignUp, elsewhere: AsyncClient, database_url: str
) -> None:
    async def use(name: str) -> None:
        client = await sign_up(f"{name}@example.com")
        elsewhere_too = {"Authorization": client.headers["Authorization"]}
        body = {"title": f"Enamel mug of {name}", "price": 12.5}
        key = {"Idempotency-Key": name}
        once, again = [await client.post("/items", json=body, headers=key) for _ in range(2)]
        assert (once.status_code, again.json()) == (201, once.json()), once.text
        rows = "".join(f'{{"external_id": "{n}", "title": "Kettle", "price": 5}}\n' for n in "ab")
        jsonl = {"Content-Type": "application/jsonl"}
        imported = await client.post("/items/import", content=rows, headers=jsonl)
        assert imported.json()["created"] == 2, imported.text
        listed = await elsewhere.get("/items?limit=2", headers=elsewhere_too)
        assert listed.json()["total"] == 3, listed.text
        assert (await client.get("/items/export")).text.count("\n") == 3
        changed = await client.patch(once.headers["location"], json={"price": 13})
        assert changed.json()["price"] == 13, changed.text

    await asyncio.gather(*(use(f"client-{n}") for n in range(CLIENTS)))
    assert await connections(database_url) <= CONNECTIONS + LISTENING


async def connections(database_url: str) -> int:
    connection = await asyncpg.connect(database_url)
    try:
        found = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return int(found)
    finally:
        await connection.close()


async def test_a_revocation_is_known_to_another_process_within_a_second(
    client: AsyncClient, elsewhere: AsyncClient
) -> None:
    token = {"Authorization": client.headers["Authorization"]}
    assert (await elsewhere.get("/users/me", headers=token)).status_code == 200
    assert (await client.post("/auth/logout")).status_code == 204
    await asyncio.sleep(1)  # the longest delay of a revocation in other processes
    assert (await elsewhere.get("/users/me", headers=token)).status_code == 401


async def test_sessions_keep_their_bounds_and_leave_none_behind(
    app: FastAPI, settings: Settings, pooled_url: str
) -> None:
    asked = text("SELECT name, setting FROM pg_settings WHERE name LIKE ANY (:names)")
    limits = {
        "statement_timeout": "10000",
        "lock_timeout": "3000",
        "idle_in_transaction_session_timeout": "300000",
        "jit": "off",
    }
    names = {"names": [*limits, "transaction_read_only"]}
    async with database_of(app).orm_transaction() as session:
        rows = await (await session.connection()).execute(asked, names)
        bounds = {row.name: row.setting for row in rows}
        assert bounds == limits | {"transaction_read_only": "off"}
    reader = database_of(app).read()
    bounds = {row.name: row.setting for row in await reader.fetch(asked, names)}
    assert bounds == limits | {"transaction_read_only": "on"}
    with pytest.raises(ReadOnlySQLTransactionError):
        await reader.fetch(text("DELETE FROM items"))
    others = [await asyncpg.connect(pooled_url) for _ in range(CONNECTIONS)]
    try:
        for other in others:
            await other.execute("BEGIN")  # occupies every server connection
        for other in others:
            await other.execute("DO $$ BEGIN ASSERT current_setting('lock_timeout') = '0'; END $$")
    finally:
        for other in others:
            await other.close()


def test_migrations_go_past_the_pooler(database_url: str) -> None:
    nowhere = f"postgresql://127.0.0.1:{free_port()}/tessera"
    settings = {"env": "test", "database_url": nowhere, "database_direct_url": database_url}
    command, variables = [sys.executable, "-m", "app", "migrate"], environment(settings)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
