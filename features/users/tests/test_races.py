"""Race conditions: a request that waited for an account's lock checks its conditions again."""

import asyncio

import pytest
from httpx import AsyncClient

from features.users.tests.conftest import EMAIL, Execute, MailedToken, Tokens, status_with
from features.users.tests.races import COUNT_LOCK_WAITS, LOCK_USER, Race, open_transaction
from tests.kit import Command, eventually

KEY = {"name": "mine", "scopes": ["users:self"]}
LOCK_EVENTS = "LOCK TABLE account_events IN SHARE MODE"


async def test_who_squats_an_address_makes_no_key_while_its_owner_resets(
    anonymous: AsyncClient,
    signed_in: Tokens,
    mailed_token: MailedToken,
    race: Race,
    database_url: str,
    execute: Execute,
) -> None:
    await anonymous.post("/auth/password/forgot", json={"email": EMAIL})
    reset = {"token": await mailed_token(EMAIL, "reset"), "new_password": "a long new password"}
    async with open_transaction(database_url, LOCK_USER):
        await race.start(anonymous.post("/auth/password/reset", json=reset))
        await race.start(anonymous.post("/users/me/api-keys", json=KEY, headers=signed_in.header))
    assert await race.statuses() == [204, 401]
    assert await execute("SELECT 1 FROM api_keys") == []


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_a_logout_and_the_end_of_its_account_do_not_wait_for_each_other(
    admin: AsyncClient,
    anonymous: AsyncClient,
    signed_in: Tokens,
    race: Race,
    database_url: str,
    method: str,
) -> None:
    """The logout has deleted its session, and waits to insert its event."""
    me = (await anonymous.get("/users/me", headers=signed_in.header)).json()
    body = {"is_active": False} if method == "PATCH" else None
    async with open_transaction(database_url, LOCK_EVENTS):
        await race.start(anonymous.post("/auth/logout", headers=signed_in.header))
        await race.start(admin.request(method, f"/users/{me['id']}", json=body))
    assert max(await race.statuses()) < 300
    assert await status_with(anonymous, signed_in.header) == 401


async def test_the_end_of_all_access_waits_for_the_resets_that_have_begun(
    anonymous: AsyncClient,
    signed_in: Tokens,
    mailed_token: MailedToken,
    race: Race,
    database_url: str,
    execute: Execute,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one with a token that has ended could be committed later."""
    monkeypatch.setenv("APP_DATABASE_LOCK_TIMEOUT", "30")
    await anonymous.post("/auth/password/forgot", json={"email": EMAIL})
    reset = {"token": await mailed_token(EMAIL, "reset"), "new_password": "a long new password"}
    before = await execute("SELECT id FROM access_ends")

    async def both_wait() -> bool:
        return bool((await execute(COUNT_LOCK_WAITS))[0][0] == 2)

    async with open_transaction(database_url, LOCK_EVENTS):
        await race.start(anonymous.post("/auth/password/reset", json=reset))
        ending = asyncio.ensure_future(command("end-access"))
        await eventually(both_wait, "a command that waits for the reset", 30)
        assert await execute("SELECT id FROM access_ends") == before
    assert await race.statuses() == [204]
    assert (await ending).exit_code == 0
    assert await execute("SELECT id FROM access_ends") != before
