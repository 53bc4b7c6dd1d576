"""A server that takes no changes: it has become a standby, or was set so. Its connections live."""

import asyncio
from collections.abc import Mapping
from typing import Any

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import Response
from sqlalchemy import text

from shared.db import database_of
from shared.settings import Settings
from tests.app_helpers import assert_problem
from tests.kit import SignUp

ITEM = {"title": "Mug", "price": 1}
END_OTHER_CONNECTIONS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
BECOME_READ_ONLY = text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"database_pool_size": 2})


@pytest.fixture
async def administrator(database_url: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(database_url)


def assert_refused(response: Response) -> None:
    assert "takes no changes" in assert_problem(response, 503)["detail"]
    assert response.headers["retry-after"]


async def make_read_only(app: FastAPI) -> None:
    """Makes all connections of the pool read-only, as a primary does that becomes a standby."""
    database = database_of(app)
    async with database.transaction() as one, database.transaction() as other:
        await asyncio.gather(one.execute(BECOME_READ_ONLY), other.execute(BECOME_READ_ONLY))


async def test_a_database_that_is_read_only_for_a_while(
    sign_up: SignUp, administrator: "asyncpg.Connection[asyncpg.Record]", database_url: str
) -> None:
    client = await sign_up()
    name = await administrator.fetchval("SELECT quote_ident(current_database())")
    await administrator.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await administrator.execute(END_OTHER_CONNECTIONS)
    for _ in range(3):
        refused = await client.post("/items", json=ITEM)
        assert assert_problem(refused, 503)["detail"]
        assert refused.headers["retry-after"]
        assert (await client.get("/items")).status_code == 200
    assert_refused(await client.get("/readyz"))

    await administrator.execute("SET default_transaction_read_only = off")
    await administrator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    for _ in range(3):
        assert (await client.post("/items", json=ITEM)).status_code == 201
    assert (await client.get("/readyz")).status_code == 200


async def test_a_connection_that_has_become_read_only_is_replaced_with_all_others(
    app: FastAPI, sign_up: SignUp, events: list[Mapping[str, Any]]
) -> None:
    client = await sign_up()
    await make_read_only(app)
    assert_refused(await client.post("/items", json=ITEM))
    assert [event["event"] for event in events].count("database_read_only") == 1
    created = await asyncio.gather(*(client.post("/items", json=ITEM) for _ in range(4)))
    assert {response.status_code for response in created} == {201}


async def test_a_server_that_has_become_read_only_is_not_ready(
    app: FastAPI, sign_up: SignUp
) -> None:
    """Although no request has noticed. The probe's own connections are replaced with all others."""
    client = await sign_up()
    assert (await client.get("/readyz")).status_code == 200
    async with database_of(app).probe() as probe:
        await probe.execute(BECOME_READ_ONLY)
    await make_read_only(app)
    assert_refused(await client.get("/readyz"))
    assert (await client.post("/items", json=ITEM)).status_code == 201
    assert (await client.get("/readyz")).status_code == 200
