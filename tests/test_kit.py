"""The test kit itself: clients of every kind, budgets of queries, bodies, mail and time."""

from datetime import timedelta

import pytest
import time_machine
from httpx import AsyncClient

from features.items.schemas import ItemCreate
from shared.testing import Mails, SignUp, body, max_queries


async def test_each_client_is_another_identity(
    anonymous: AsyncClient, client: AsyncClient, other: AsyncClient, admin: AsyncClient
) -> None:
    assert (await anonymous.get("/users/me")).status_code == 401
    emails = [(await who.get("/users/me")).json()["email"] for who in (client, other, admin)]
    assert len(set(emails)) == 3
    assert (await client.get("/users")).status_code == 403
    assert (await admin.get("/users")).status_code == 200


async def test_a_machine_acts_for_the_account_of_client(
    client: AsyncClient, machine: AsyncClient, other: AsyncClient
) -> None:
    made = await machine.post("/items", json=body(ItemCreate))
    assert (await client.get(made.headers["location"])).status_code == 200
    assert (await other.get(made.headers["location"])).status_code == 404


async def test_a_request_over_its_budget_of_queries_fails(client: AsyncClient) -> None:
    with max_queries(3):
        await client.get("/items")
    with pytest.raises(AssertionError, match=r"(?s)queries instead of 1:.*FROM items"):  # noqa: SIM117
        with max_queries(1):
            await client.get("/items")


async def test_a_body_is_valid_and_has_what_was_given(client: AsyncClient) -> None:
    for number in range(20):
        sent = body(ItemCreate, title=f"Mug {number}")
        created = await client.post("/items", json=sent)
        assert created.status_code == 201, (sent, created.text)
        assert created.json()["title"] == f"Mug {number}"


async def test_mail_is_caught(sign_up: SignUp, mails: Mails) -> None:
    await sign_up("ada@example.com")
    (welcome,) = await mails("ada@example.com")
    assert "ada@example.com" not in welcome["subject"]
    assert await mails("eve@example.com") == []


async def test_time_can_be_moved(client: AsyncClient) -> None:
    assert (await client.get("/users/me")).status_code == 200
    with time_machine.travel(timedelta(hours=2)):
        assert (await client.get("/users/me")).status_code == 401
    assert (await client.get("/users/me")).status_code == 200
