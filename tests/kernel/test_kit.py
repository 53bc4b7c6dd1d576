"""The test kit: clients, query budgets, table ownership, bodies, log, time and waits."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
import sqlmodel
import structlog
import time_machine
from fastapi import APIRouter, FastAPI
from httpx import AsyncClient

from app.main import create_app
from features.items.schemas import ItemCreate, ItemUpdate
from features.users.accounts.tables import User
from shared.auth import Authenticator, Principal
from shared.db import OrmSession, WriteSession
from shared.feature import Feature
from shared.problems import Unauthorized
from shared.settings import Settings
from tests.app_helpers import app_with
from tests.kit import (
    connect,
    eventually,
    max_queries,
    payload_for,
    recorded_queries,
    sign_in,
    wait_until,
    within,
)
from tests.kit.ownership import check_table_writes


async def test_each_client_is_another_identity(
    anonymous: AsyncClient, client: AsyncClient, other_client: AsyncClient, admin: AsyncClient
) -> None:
    assert (await anonymous.get("/users/me")).status_code == 401
    emails = [(await who.get("/users/me")).json()["email"] for who in (client, other_client, admin)]
    assert len(set(emails)) == 3
    assert (await client.get("/users")).status_code == 403
    assert (await admin.get("/users")).status_code == 200


async def test_a_machine_acts_for_the_account_of_client(
    client: AsyncClient, api_key_client: AsyncClient, other_client: AsyncClient
) -> None:
    made = await api_key_client.post("/items", json=payload_for(ItemCreate))
    assert (await client.get(made.headers["location"])).status_code == 200
    assert (await other_client.get(made.headers["location"])).status_code == 404


async def test_without_a_feature_that_has_accounts_the_clients_say_what_is_missing(
    settings: Settings,
) -> None:
    """The kernel of another product has no such feature, or one that tells the tests nothing."""
    refusing = Feature(
        name="probe",
        router=APIRouter(),
        authenticator=Authenticator(
            authenticate=refuse,
            recognize=lambda _app, _credential: None,
            lock_access=refuse_lock,
            token_url="/token",
        ),
    )
    for features, missing in (
        ([], "none of the features under test has an authenticator"),
        ([refusing], "features/probe/tests/accounts.py is missing"),
    ):
        app = create_app(settings, features, run_tasks=False)
        async with app.router.lifespan_context(app), connect(app) as client:
            assert (await client.get("/healthz")).status_code == 200
            with pytest.raises(AssertionError, match=missing):
                await sign_in(app, client, "ada@example.com")


async def refuse(_app: FastAPI, _credential: str) -> Principal:
    raise Unauthorized("Nobody has an account")


async def refuse_lock(_session: WriteSession, _principal: Principal) -> bool:
    return False


async def test_a_request_over_its_budget_of_queries_fails(client: AsyncClient) -> None:
    with max_queries(3):
        await client.get("/items")
    with pytest.raises(AssertionError, match=r"(?s)queries instead of 1:.*FROM items"):  # noqa: SIM117
        with max_queries(1):
            await client.get("/items")


async def test_the_statements_of_a_request_can_be_looked_at(client: AsyncClient) -> None:
    with recorded_queries() as statements:
        await client.get("/items?sort=-price")
    await client.get("/users/me")
    assert any("FROM items" in statement for statement in statements)
    assert not any("FROM users" in statement for statement in statements)


HANDLERS = """
async def past_sqlalchemy(session: WriteSession):
    await session.execute(change(Thing).values(role="admin"))

async def flushed(session: OrmSession):
    session.add(Thing(email="eve@example.com"))
    await session.flush()

async def by_statement(session: OrmSession):
    await session.exec(change(Thing).values(role="admin"))

async def by_its_table(session: OrmSession):
    await session.exec(Thing.__table__.delete())

async def by_sql(session: OrmSession):
    connection = await session.connection()
    await connection.execute(sqlalchemy.text("UPDATE public.users SET role = 'admin'"))

async def by_attribute(session: OrmSession):
    (await session.exec(sqlmodel.select(Thing))).one().role = "admin"

async def deleted(session: OrmSession):
    await session.delete((await session.exec(sqlmodel.select(Thing))).one())
"""


@pytest.mark.parametrize(
    "name",
    [
        "past_sqlalchemy",
        "flushed",
        "by_statement",
        "by_its_table",
        "by_sql",
        "by_attribute",
        "deleted",
    ],
)
async def test_who_writes_to_a_neighbours_table_is_named(settings: Settings, name: str) -> None:
    """Also if only the commit writes, after the handler has returned."""
    code: dict[str, Any] = {"__name__": "features.items.handlers", "change": sqlalchemy.update}
    code |= {
        "Thing": User,
        "OrmSession": OrmSession,
        "WriteSession": WriteSession,
        "sqlalchemy": sqlalchemy,
        "sqlmodel": sqlmodel,
    }
    exec(HANDLERS, code)
    probe = APIRouter()
    probe.post("/probe")(code[name])
    async with app_with(settings, probe) as app, connect(app) as client:
        named = pytest.raises(AssertionError, match=r"^items writes to users")
        with named, check_table_writes(app):
            await sign_in(app, client, "ada@example.com")
            assert (await client.post("/probe")).status_code == 200, "or what it wrote is undone"


async def test_a_body_is_valid_and_has_what_was_given(client: AsyncClient) -> None:
    for number in range(20):
        sent = payload_for(ItemCreate, title=f"Mug {number}")
        created = await client.post("/items", json=sent)
        assert created.status_code == 201, (sent, created.text)
        assert created.json()["title"] == f"Mug {number}"


def test_bodies_have_different_texts() -> None:
    """Else some run of the suite sends the same `external_id` twice, and gets 409."""
    bodies = [payload_for(ItemCreate) for _ in range(1_000)]
    sent = [external_id for body in bodies if (external_id := body["external_id"])]
    assert len(sent) > 300
    assert len({*sent}) == len(sent)


async def test_a_body_of_a_change_leaves_out_what_may_be_left_out(client: AsyncClient) -> None:
    url = (await client.post("/items", json=payload_for(ItemCreate))).headers["location"]
    sent = [payload_for(ItemUpdate, title=f"Mug {number}") for number in range(20)]
    for changes in sent:
        changed = await client.patch(url, json=changes)
        assert changed.status_code == 200, (changes, changed.text)
    assert len({frozenset(changes) for changes in sent}) > 1


async def test_events_collects_what_is_logged(events: list[Mapping[str, Any]]) -> None:
    structlog.get_logger("kettle").info("fills")
    structlog.get_logger("kettle").warning("boils", litres=2)
    (boils,) = events
    assert (boils["event"], boils["litres"]) == ("boils", 2)


async def test_time_can_be_moved(client: AsyncClient) -> None:
    assert (await client.get("/users/me")).status_code == 200
    with time_machine.travel(timedelta(hours=2)):
        assert (await client.get("/users/me")).status_code == 401
    assert (await client.get("/users/me")).status_code == 200


async def test_a_wait_returns_what_it_waited_for() -> None:
    looks = iter([0, 0, 7])

    async def look() -> int:
        return next(looks)

    assert await eventually(look, "a number") == 7
    assert await eventually(lambda: "found", "a word") == "found"
    assert wait_until(lambda: "found", "a word") == "found"


async def test_a_wait_that_times_out_says_what_did_not_come() -> None:
    with pytest.raises(AssertionError, match=r"^the answer did not come within 0.05 s$"):
        await eventually(lambda: False, "the answer", 0.05)
    with pytest.raises(AssertionError, match=r"^the answer did not come within 0.05 s$"):
        wait_until(lambda: False, "the answer", 0.05)
    with pytest.raises(AssertionError, match=r"^the answer did not come within 0.05 s$"):
        async with within(0.05, "the answer"):
            await asyncio.Event().wait()


async def test_a_timeout_within_a_wait_is_not_taken_for_its_own() -> None:
    with pytest.raises(TimeoutError, match="of somebody else"):
        async with within(10, "the answer"):
            raise TimeoutError("of somebody else")
