"""Sessions: list, end one, end all others."""

import asyncio

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.users import commands
from features.users.sessions.handlers import MAX_SESSIONS
from features.users.state import state_of
from features.users.tests.conftest import (
    Execute,
    Tokens,
    by_password,
    by_refresh,
    register,
    status_with,
    tokens_of,
)
from features.users.tests.races import open_transaction
from tests.kit import Command, SignUp, eventually

LOCK_FIRST_SESSION = """
SELECT FROM sessions WHERE user_id = (SELECT id FROM users WHERE email = 'ada@example.com')
ORDER BY id LIMIT 1 FOR KEY SHARE
"""


@pytest.fixture
async def key_header(anonymous: AsyncClient, signed_in: Tokens) -> dict[str, str]:
    """The header with an API key of Ada."""
    key = {"name": "robot", "scopes": ["users:self"]}
    made = await anonymous.post("/users/me/api-keys", json=key, headers=signed_in.header)
    return {"X-API-Key": made.json()["key"]}


async def test_logout_ends_both_tokens(anonymous: AsyncClient, signed_in: Tokens) -> None:
    response = await anonymous.post("/auth/logout", headers=signed_in.header)
    assert response.status_code == 204
    assert await status_with(anonymous, signed_in.header) == 401
    assert (await by_refresh(anonymous, signed_in.refresh)).status_code == 400


async def test_logout_needs_no_scope(anonymous: AsyncClient) -> None:
    await register(anonymous)
    narrow = tokens_of(await by_password(anonymous, scope=" "))
    response = await anonymous.post("/auth/logout", headers=narrow.header)
    assert response.status_code == 204
    assert (await by_refresh(anonymous, narrow.refresh)).status_code == 400


async def test_sessions_tell_device_address_and_last_use(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    anonymous.headers["User-Agent"] = "Phone/1.0"
    phone = tokens_of(await by_password(anonymous))

    listed = (await anonymous.get("/auth/sessions", headers=phone.header)).json()["items"]

    assert [session["current"] for session in listed] == [True, False]
    assert listed[0]["user_agent"] == "Phone/1.0"
    assert listed[0]["address"] == "127.0.0.1"
    await by_refresh(anonymous, signed_in.refresh)
    listed = (await anonymous.get("/auth/sessions", headers=phone.header)).json()["items"]
    assert [session["current"] for session in listed] == [False, True]
    assert listed[0]["last_used_at"] > listed[0]["created_at"]


async def test_one_session_can_be_ended_from_another(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    other = tokens_of(await by_password(anonymous))
    listed = (await anonymous.get("/auth/sessions", headers=other.header)).json()["items"]
    (lost,) = [session["id"] for session in listed if not session["current"]]

    url = f"/auth/sessions/{lost}"
    assert (await anonymous.delete(url, headers=other.header)).status_code == 204

    assert await status_with(anonymous, signed_in.header) == 401
    assert await status_with(anonymous, other.header) == 200
    again = await anonymous.delete(url, headers=other.header)
    assert again.status_code == 404
    assert again.json()["detail"] == f"Session {lost} not found"


async def test_all_other_sessions_can_be_ended(anonymous: AsyncClient, signed_in: Tokens) -> None:
    others = [tokens_of(await by_password(anonymous)) for _ in range(3)]
    ended = await anonymous.delete("/auth/sessions", headers=signed_in.header)
    assert ended.status_code == 204
    assert await status_with(anonymous, signed_in.header) == 200
    for other in others:
        assert await status_with(anonymous, other.header) == 401
        assert (await by_refresh(anonymous, other.refresh)).status_code == 400


async def test_a_strangers_session_does_not_exist(
    anonymous: AsyncClient, signed_in: Tokens, sign_up: SignUp
) -> None:
    stranger = await sign_up()
    listed = (await stranger.get("/auth/sessions")).json()["items"]
    url = f"/auth/sessions/{listed[0]['id']}"
    assert (await anonymous.delete(url, headers=signed_in.header)).status_code == 404
    assert (await stranger.get("/users/me")).status_code == 200


async def test_a_deleted_account_is_not_found(anonymous: AsyncClient, signed_in: Tokens) -> None:
    assert (await anonymous.delete("/users/me", headers=signed_in.header)).status_code == 204
    gone = await anonymous.get("/users/me", headers=signed_in.header)
    assert gone.status_code == 401
    assert gone.json()["detail"] == "User not found"
    assert gone.headers["www-authenticate"] == "Bearer"


async def test_the_longest_unused_sessions_end_beyond_the_most_that_an_account_has(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    """Else an intruder with the password could make more than can be ended in time."""
    await register(anonymous, "grace@example.com")
    tokens_of(await by_password(anonymous, "grace@example.com"))
    await execute(
        "INSERT INTO sessions (id, user_id, address, user_agent, last_used_at, expires_at)"
        " SELECT gen_random_uuid(), user_id, '', '', now() + n * interval '1 ms',"
        " now() + interval '1 day' FROM sessions, generate_series(1, 120) AS n"
    )
    another = tokens_of(await by_password(anonymous))
    listed = (await anonymous.get("/auth/sessions", headers=another.header)).json()["items"]
    assert len(listed) == MAX_SESSIONS
    assert any(each["current"] for each in listed)
    assert await status_with(anonymous, signed_in.header) == 401
    assert len(await execute("SELECT FROM sessions")) == MAX_SESSIONS + 121


async def test_the_access_of_all_accounts_is_ended_by_a_command(
    app: FastAPI,
    anonymous: AsyncClient,
    signed_in: Tokens,
    key_header: dict[str, str],
    command: Command,
    execute: Execute,
) -> None:
    """More sessions than a batch has; the access token of one that the database does not know, as
    it was restored to an earlier time, ends too."""
    unknown = tokens_of(await by_password(anonymous))
    await execute("ALTER TABLE sessions DISABLE TRIGGER revoke")
    await execute(
        "DELETE FROM sessions WHERE id = (SELECT id FROM sessions ORDER BY id DESC LIMIT 1)"
    )
    await execute("ALTER TABLE sessions ENABLE TRIGGER revoke")
    assert await status_with(anonymous, unknown.header) == 200
    await execute(
        "INSERT INTO sessions (id, user_id, address, user_agent, expires_at)"
        " SELECT gen_random_uuid(), user_id, '', '', now() + interval '1 day'"
        " FROM sessions, generate_series(1, 1000)"
    )
    stored = len(await execute("SELECT FROM sessions"))

    done = await command("end-access")

    assert done.output == f"ended {stored} sessions\n"
    await state_of(app).revocation_list.sync()
    for tokens in (signed_in, unknown):
        assert await status_with(anonymous, tokens.header) == 401
        assert (await by_refresh(anonymous, tokens.refresh)).status_code == 400
    assert await status_with(anonymous, key_header) == 200
    again = tokens_of(await by_password(anonymous))
    events = (await anonymous.get("/users/me/events", headers=again.header)).json()["items"]
    assert [event["kind"] for event in events][:2] == ["signed_in", "signed_out"]


async def test_the_command_ends_all_access_but_what_others_have_locked_and_then_the_rest(
    app: FastAPI,
    anonymous: AsyncClient,
    signed_in: Tokens,
    key_header: dict[str, str],
    database_url: str,
    command: Command,
    execute: Execute,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "LOCK_WAIT_SECONDS", 0.2)
    other = tokens_of(await by_password(anonymous))
    stored = len(await execute("SELECT FROM sessions"))
    async with open_transaction(database_url, LOCK_FIRST_SESSION):
        done = await command("end-access", "--api-keys")
        assert done.exit_code == 1
        assert done.stderr.startswith("error: 1 sessions and 0 API keys are left, as other")
        assert "run it again" in done.stderr
        await state_of(app).revocation_list.sync()
        assert (await by_refresh(anonymous, other.refresh)).status_code == 400
        assert await status_with(anonymous, key_header) == 401
        assert len(await execute("SELECT FROM account_events WHERE kind = 'signed_out'")) == (
            stored - 1
        )

    again = await command("end-access", "--api-keys")

    assert again.output == "ended 1 sessions and 0 API keys\n"
    assert (await by_refresh(anonymous, signed_in.refresh)).status_code == 400


async def test_the_command_waits_for_who_has_locked_a_session(
    anonymous: AsyncClient,
    signed_in: Tokens,
    database_url: str,
    command: Command,
    execute: Execute,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an import does that is being committed, for longer than other statements wait."""
    monkeypatch.setenv("APP_DATABASE_LOCK_TIMEOUT", "0.05")

    async def waits_for_longer() -> bool:
        waiting = await execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND query_start < now() - interval '0.2 s'"
        )
        return bool(waiting) or ending.done()

    async with open_transaction(database_url, "SELECT FROM sessions FOR KEY SHARE"):
        ending = asyncio.ensure_future(command("end-access"))
        await eventually(waits_for_longer, "the command, which waits", 30)
    assert (await ending).output == "ended 1 sessions\n"


async def test_the_api_keys_of_all_accounts_are_ended_by_the_command(
    app: FastAPI, anonymous: AsyncClient, key_header: dict[str, str], command: Command
) -> None:
    assert await status_with(anonymous, key_header) == 200
    done = await command("end-access", "--api-keys")
    assert done.output == "ended 1 sessions and 1 API keys\n"
    await state_of(app).revocation_list.sync()
    assert await status_with(anonymous, key_header) == 401
