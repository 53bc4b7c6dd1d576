"""A synchronous standby is cut off: COMMITs wait, and until then no answer confirms their rows."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from app.embedded import EmbeddedServer, ensure_database
from app.migrations import upgrade
from shared.settings import Settings
from tests.app_helpers import assert_problem
from tests.kit import PASSWORD, SignUp, eventually
from tests.resilience.pairs import running_primary

pytestmark = [pytest.mark.verify, pytest.mark.timeout(120)]

MUG = {"title": "Enamel mug", "price": 12.5}
KEY = {"Idempotency-Key": "once"}
SELECT_WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def server_of_standby() -> Iterator[EmbeddedServer]:
    with running_primary() as server:
        upgrade(asyncio.run(ensure_database(server, "tessera")))
        yield server


@pytest.fixture
def database_url(server_of_standby: EmbeddedServer) -> str:
    return server_of_standby.url("tessera")


@pytest.fixture
def request_timeout() -> float:
    return 1.0


@pytest.fixture
def settings(settings: Settings, request_timeout: float) -> Settings:
    return settings.model_copy(update={"request_timeout": request_timeout})


@pytest.fixture
async def primary(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await wait_for_standby(connection, "")
    await connection.close()


async def wait_for_standby(connection: "asyncpg.Connection[asyncpg.Record]", name: str) -> None:
    await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    await connection.execute("SELECT pg_reload_conf()")
    await eventually(
        lambda: connection.fetchval(
            "SELECT current_setting('synchronous_standby_names') = $1", name
        ),
        "the changed setting",
    )


async def test_a_transaction_of_the_routes_own_says_that_its_outcome_is_unknown(
    anonymous: AsyncClient, primary: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await wait_for_standby(primary, "nobody")
    account = {"email": "ada@example.com", "password": PASSWORD}
    late = await anonymous.post("/users", json=account)
    assert "is unknown" in assert_problem(late, 503)["detail"]


async def test_a_commit_that_the_standby_has_not_confirmed_is_vouched_for_by_nobody(
    sign_up: SignUp, primary: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    client = await sign_up()
    await wait_for_standby(primary, "nobody")

    late = await client.post("/items", json=MUG, headers=KEY)
    assert "is unknown" in assert_problem(late, 503)["detail"]
    assert late.headers["retry-after"]
    waiting = [row["pid"] for row in await primary.fetch(SELECT_WAITING)]
    assert len(waiting) == 1, "the COMMIT is not cancelled"
    assert (await client.get("/items")).json()["total"] == 0
    again = await client.post("/items", json=MUG, headers=KEY)
    assert_problem(again, 409)

    await primary.execute(
        "SELECT pg_cancel_backend($1)", *waiting
    )  # it is then committed here alone
    await eventually(lambda: count(client), "the item, committed locally")
    replayed = await client.post("/items", json=MUG, headers=KEY)
    assert_problem(replayed, 503)

    await wait_for_standby(primary, "")
    confirmed = await client.post("/items", json=MUG, headers=KEY)
    assert (confirmed.status_code, confirmed.headers["idempotency-replayed"]) == (201, "true")
    assert await count(client) == 1


async def count(client: AsyncClient) -> int:
    return int((await client.get("/items")).json()["total"])


async def test_a_commit_is_not_cancelled_by_the_end_of_the_process(
    app: FastAPI, sign_up: SignUp, primary: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    client = await sign_up()
    await wait_for_standby(primary, "nobody")
    assert_problem(await client.post("/items", json=MUG), 503)
    await app.state.database.dispose()
    await asyncio.sleep(0.2)  # in which a cancel request would arrive
    assert len(await primary.fetch(SELECT_WAITING)) == 1


@pytest.mark.parametrize("request_timeout", [30.0])
async def test_a_commit_whose_wait_an_administrator_cancels_is_not_acknowledged(
    sign_up: SignUp, primary: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """PostgreSQL answers it as if it were confirmed, after a warning."""
    client = await sign_up()
    await wait_for_standby(primary, "nobody")
    writing = asyncio.create_task(client.post("/items", json=MUG, headers=KEY))

    async def waiting() -> int | None:
        pid: int | None = await primary.fetchval(SELECT_WAITING)
        return pid

    await primary.execute("SELECT pg_cancel_backend($1)", await eventually(waiting, "the COMMIT"))
    assert "is unknown" in assert_problem(await writing, 503)["detail"]
    await wait_for_standby(primary, "")
    confirmed = await client.post("/items", json=MUG, headers=KEY)
    assert (confirmed.status_code, confirmed.headers["idempotency-replayed"]) == (201, "true")
    assert (await client.post("/items", json=MUG)).status_code == 201, "said once"
