"""Passwords: strength, change and reset; verification of email addresses."""

import asyncio
import threading
from datetime import timedelta

import pytest
import time_machine
from fastapi import FastAPI
from httpx import AsyncClient
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlmodel import select

from features.users.accounts.tables import User
from features.users.passwords.tasks import send_password_resets
from features.users.state import state_of
from features.users.tests.conftest import (
    EMAIL,
    Execute,
    MailedToken,
    Tokens,
    by_password,
    by_refresh,
    register,
    status_with,
    tokens_of,
)
from shared.db import database_of
from shared.slots import Slots
from tests.kit import PASSWORD, Command, connect, eventually, run_until_idle

NEW = "another long enough password"


WEAK_PASSWORDS: list[tuple[str, str]] = [
    ("short", "at least 8 characters"),
    ("x" * 129, "at most 128 characters"),
    ("password1", "most common"),
    ("Iloveyou1", "most common"),
    ("ada@example.com", "must not be the email"),
]


async def test_a_weak_password_is_refused(
    anonymous: AsyncClient, subtests: pytest.Subtests
) -> None:
    for password, detail in WEAK_PASSWORDS:
        with subtests.test(password=password, detail=detail):
            refused = await anonymous.post("/users", json={"email": EMAIL, "password": password})
            assert refused.status_code == 422
            assert detail in refused.json()["errors"][0]["detail"]


async def change(client: AsyncClient, tokens: Tokens, current: str, new: str) -> int:
    body = {"current_password": current, "new_password": new}
    response = await client.put("/users/me/password", json=body, headers=tokens.header)
    return response.status_code


async def test_a_change_needs_the_old_password_and_ends_other_sessions(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    other = tokens_of(await by_password(anonymous))
    assert await change(anonymous, signed_in, "not my password", NEW) == 403
    assert await status_with(anonymous, other.header) == 200

    assert await change(anonymous, signed_in, PASSWORD, NEW) == 204

    assert await status_with(anonymous, signed_in.header) == 200
    assert await status_with(anonymous, other.header) == 401
    assert (await by_refresh(anonymous, other.refresh)).status_code == 400
    assert (await by_password(anonymous, password=PASSWORD)).status_code == 400
    tokens_of(await by_password(anonymous, password=NEW))


async def test_all_who_sign_in_while_a_weaker_hash_is_made_anew_get_in(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens
) -> None:
    weaker = Argon2Hasher(time_cost=1, memory_cost=16, parallelism=1).hash(PASSWORD)
    async with database_of(app).orm_transaction() as session:
        user = (await session.exec(select(User).where(User.email == EMAIL))).one()
        user.password_hash = weaker

    answers = await asyncio.gather(*(by_password(anonymous) for _ in range(8)))

    assert [answer.status_code for answer in answers] == [200] * 8
    async with database_of(app).orm_transaction() as session:
        kept = (await session.exec(select(User.password_hash).where(User.email == EMAIL))).one()
    assert kept != weaker


async def test_of_two_changes_at_once_one_wins(anonymous: AsyncClient, signed_in: Tokens) -> None:
    answers = await asyncio.gather(
        *(change(anonymous, signed_in, PASSWORD, f"{NEW} {i}") for i in range(2))
    )
    assert sorted(answers) in ([204, 403], [204, 409])


async def forget(client: AsyncClient, email: str) -> None:
    response = await client.post("/auth/password/forgot", json={"email": email})
    assert (response.status_code, response.content) == (202, b"null")


async def reset(client: AsyncClient, token: str, password: str = NEW) -> int:
    body = {"token": token, "new_password": password}
    return (await client.post("/auth/password/reset", json=body)).status_code


async def test_a_reset_sets_the_password_once_and_ends_all_sessions(
    anonymous: AsyncClient, signed_in: Tokens, mailed_token: MailedToken
) -> None:
    await forget(anonymous, EMAIL.upper())
    token = await mailed_token(EMAIL, "reset")

    assert await reset(anonymous, token) == 204

    assert await status_with(anonymous, signed_in.header) == 401
    assert (await by_refresh(anonymous, signed_in.refresh)).status_code == 400
    tokens_of(await by_password(anonymous, password=NEW))
    assert await reset(anonymous, token, "a third long password") == 400


async def test_of_two_resets_at_once_one_wins(
    anonymous: AsyncClient, signed_in: Tokens, mailed_token: MailedToken
) -> None:
    await forget(anonymous, EMAIL)
    token = await mailed_token(EMAIL, "reset")
    answers = await asyncio.gather(*(reset(anonymous, token, f"{NEW} {i}") for i in range(5)))
    assert sorted(answers) == [204, 400, 400, 400, 400]


async def test_a_reset_token_dies_with_the_password_it_was_made_for(
    anonymous: AsyncClient, signed_in: Tokens, mailed_token: MailedToken
) -> None:
    await forget(anonymous, EMAIL)
    token = await mailed_token(EMAIL, "reset")
    assert await change(anonymous, signed_in, PASSWORD, NEW) == 204
    assert await reset(anonymous, token) == 400


async def test_a_used_reset_token_stays_used_in_a_database_of_an_earlier_time(
    anonymous: AsyncClient,
    signed_in: Tokens,
    mailed_token: MailedToken,
    command: Command,
    execute: Execute,
) -> None:
    """Which has the password that the token is bound to: `end-access` ends it, and each before."""
    await forget(anonymous, EMAIL)
    token = await mailed_token(EMAIL, "reset")
    (before,) = await execute("SELECT password_hash FROM users")
    assert await reset(anonymous, token) == 204
    await execute("UPDATE users SET password_hash = $1", before[0])

    assert (await command("end-access")).exit_code == 0

    assert await reset(anonymous, token, "a third long password") == 400
    await forget(anonymous, EMAIL)
    later = await mailed_token(EMAIL, "reset")
    assert (await command("end-access")).exit_code == 0
    assert await reset(anonymous, later) == 400
    await forget(anonymous, EMAIL)
    assert await reset(anonymous, await mailed_token(EMAIL, "reset")) == 204


async def test_a_reset_token_expires(
    anonymous: AsyncClient, signed_in: Tokens, mailed_token: MailedToken
) -> None:
    await forget(anonymous, EMAIL)
    token = await mailed_token(EMAIL, "reset")
    with time_machine.travel(timedelta(minutes=61), tick=True):
        assert await reset(anonymous, token) == 400


async def test_nobody_is_mailed_without_an_account(
    app: FastAPI, anonymous: AsyncClient, execute: Execute
) -> None:
    await forget(anonymous, "nobody@example.com")
    assert await run_until_idle(app, send_password_resets) == 1
    assert await execute("SELECT 1 FROM outgoing_mail") == []


async def test_a_deactivated_account_cannot_be_reset(
    app: FastAPI,
    anonymous: AsyncClient,
    signed_in: Tokens,
    mailed_token: MailedToken,
    execute: Execute,
) -> None:
    await forget(anonymous, EMAIL)
    token = await mailed_token(EMAIL, "reset")
    await execute("UPDATE users SET is_active = false")
    assert await reset(anonymous, token) == 400


async def verified(client: AsyncClient, tokens: Tokens) -> bool:
    me = await client.get("/users/me", headers=tokens.header)
    return bool(me.json()["email_verified"])


async def test_an_address_is_verified_by_what_was_mailed_to_it(
    anonymous: AsyncClient, signed_in: Tokens, mailed_token: MailedToken
) -> None:
    assert not await verified(anonymous, signed_in)
    token = await mailed_token(EMAIL, "confirm")
    for _ in range(2):
        done = await anonymous.post("/auth/email/verify", json={"token": token})
        assert done.status_code == 204
    assert await verified(anonymous, signed_in)


async def test_a_verification_can_be_mailed_again_until_it_is_done(
    anonymous: AsyncClient, signed_in: Tokens, mailed_token: MailedToken, execute: Execute
) -> None:
    await execute("DELETE FROM outgoing_mail")
    again = await anonymous.post("/users/me/verification", headers=signed_in.header)
    assert again.status_code == 202
    token = await mailed_token(EMAIL, "confirm")
    await anonymous.post("/auth/email/verify", json={"token": token})
    await execute("DELETE FROM outgoing_mail")
    await anonymous.post("/users/me/verification", headers=signed_in.header)
    assert await execute("SELECT 1 FROM outgoing_mail") == []


async def test_a_token_in_a_mail_is_good_for_one_purpose(
    anonymous: AsyncClient, signed_in: Tokens, mailed_token: MailedToken
) -> None:
    await forget(anonymous, EMAIL)
    for_reset = await mailed_token(EMAIL, "reset")
    for_verification = await mailed_token(EMAIL, "confirm")
    assert await reset(anonymous, for_verification) == 400
    wrong = await anonymous.post("/auth/email/verify", json={"token": for_reset})
    assert wrong.status_code == 400
    assert await status_with(anonymous, {"Authorization": f"Bearer {for_reset}"}) == 401


async def test_who_squatted_an_address_loses_every_way_in_when_its_owner_resets(
    anonymous: AsyncClient, mailed_token: MailedToken
) -> None:
    """An attacker registered the address of another person, and created an API key."""
    await register(anonymous)
    squatter = tokens_of(await by_password(anonymous))
    key = await anonymous.post(
        "/users/me/api-keys",
        json={"name": "mine", "scopes": ["users:self"]},
        headers=squatter.header,
    )
    header = {"X-API-Key": key.json()["key"]}
    assert await status_with(anonymous, header) == 200
    await forget(anonymous, EMAIL)
    assert await reset(anonymous, await mailed_token(EMAIL, "reset")) == 204
    assert await status_with(anonymous, header) == 401
    assert await status_with(anonymous, squatter.header) == 401


async def test_passwords_that_are_checked_hold_nobody_else_up(
    app: FastAPI, anonymous: AsyncClient, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasher, gate = state_of(app).hasher, threading.Event()
    monkeypatch.setattr(hasher, "_slots", Slots("password_hashing", 2))

    def check_slowly(*_: str) -> tuple[bool, None]:
        gate.wait(30)
        return False, None

    monkeypatch.setattr(hasher._hasher, "verify_and_update", check_slowly)
    async with connect(app, "192.0.2.1") as one, connect(app, "192.0.2.2") as two:
        guesses = [asyncio.create_task(by_password(each)) for each in (one, two)]
        await eventually(lambda: hasher._slots.in_use == 2, "two that are checked", 30)
        refused = await by_password(anonymous)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert (await client.get("/users/me")).status_code == 200
        gate.set()
        assert [(await guess).status_code for guess in guesses] == [400, 400]


async def test_one_address_leaves_the_queue_of_passwords_to_others(
    app: FastAPI, anonymous: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots("password_hashing", 4)
    monkeypatch.setattr(state_of(app).hasher, "_slots", slots)
    for _ in range(2):
        slots.take("127.0.0.1")
    refused = await by_password(anonymous)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    async with connect(app, "192.0.2.1") as other:
        assert (await by_password(other)).status_code == 400
