"""Every process refuses a revoked token within a second, without a query per request."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.users.access_tokens.jwt import LEEWAY_SECONDS
from features.users.access_tokens.revocation_list import RevocationList
from features.users.sessions.tasks import purge_expired_sessions
from features.users.state import state_of
from features.users.tests.api_processes import api_process
from features.users.tests.conftest import (
    Execute,
    Tokens,
    age_of_last_accepted,
    by_password,
    register,
    running_app,
    status_with,
    tokens_of,
)
from shared.settings import Settings
from tests.kit import PASSWORD, eventually, run_until_idle
from tests.kit.queries import recorded_queries

WITHIN_SECONDS = 1.0
NEW_PASSWORD = "another long enough password"


@pytest.fixture
async def other_process(database_url: str, app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client of another API process on the same database."""
    async with api_process(database_url) as client:
        yield client


async def accepted_for(client: AsyncClient, tokens: Tokens) -> float:
    """Returns how many seconds from now the process last accepted the token."""

    async def refused() -> bool:
        return await status_with(client, tokens.header) == 401

    return await age_of_last_accepted(refused, "a 401 for a token that has ended")


async def read_revocations(app: FastAPI) -> None:
    """Waits until the process has polled the revocations."""
    await eventually(lambda: state_of(app).revocation_list.fresh, "a poll of the revocations")


@pytest.mark.verify
async def test_every_end_takes_hold_in_another_process_within_a_second(
    anonymous: AsyncClient, admin: AsyncClient, signed_in: Tokens, other_process: AsyncClient
) -> None:
    async def logout(tokens: Tokens) -> None:
        await anonymous.post("/auth/logout", headers=tokens.header)

    async def end_others(_: Tokens) -> None:
        await anonymous.delete("/auth/sessions", headers=signed_in.header)

    async def change_password(_: Tokens) -> None:
        body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        changed = await anonymous.put("/users/me/password", json=body, headers=signed_in.header)
        assert changed.status_code == 204
        body = {"current_password": NEW_PASSWORD, "new_password": PASSWORD}
        await anonymous.put("/users/me/password", json=body, headers=signed_in.header)

    async def deactivate(tokens: Tokens) -> None:
        me = (await anonymous.get("/users/me", headers=tokens.header)).json()
        await admin.patch(f"/users/{me['id']}", json={"is_active": False})
        await admin.patch(f"/users/{me['id']}", json={"is_active": True})

    async def delete(tokens: Tokens) -> None:
        await anonymous.delete("/users/me", headers=tokens.header)

    for end in (logout, end_others, change_password, deactivate, delete):
        tokens = tokens_of(await by_password(anonymous))
        assert await status_with(other_process, tokens.header) == 200
        await end(tokens)
        assert await accepted_for(other_process, tokens) < WITHIN_SECONDS, end.__name__


async def test_what_raw_sql_deletes_is_refused_too(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    assert await status_with(anonymous, signed_in.header) == 200
    await execute("DELETE FROM sessions")
    assert await accepted_for(anonymous, signed_in) < WITHIN_SECONDS


@pytest.mark.verify
async def test_a_lost_notification_costs_less_than_a_second(
    anonymous: AsyncClient, signed_in: Tokens, other_process: AsyncClient, execute: Execute
) -> None:
    await execute(
        "CREATE OR REPLACE FUNCTION revoke_deleted() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN INSERT INTO revocations (id) SELECT id FROM gone ON CONFLICT DO NOTHING;"
        " RETURN NULL; END $$"
    )
    assert await status_with(other_process, signed_in.header) == 200
    await anonymous.post("/auth/logout", headers=signed_in.header)
    assert await accepted_for(other_process, signed_in) < WITHIN_SECONDS


async def test_a_process_that_has_lost_touch_asks_the_database(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    """Its copy may be outdated, so each request queries the database and sees the end at once."""
    state = state_of(app)
    await state.revocation_list.stop()
    assert not state.revocation_list.fresh
    with recorded_queries() as statements:
        assert await status_with(anonymous, signed_in.header) == 200
    assert any("FROM users LEFT OUTER JOIN sessions" in s for s in statements)
    await execute("DELETE FROM sessions")
    assert await status_with(anonymous, signed_in.header) == 401
    await execute("DELETE FROM users")
    gone = await anonymous.get("/users/me", headers=signed_in.header)
    assert gone.json()["detail"] == "User not found"


async def test_a_killed_connection_is_made_again(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    await execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await execute("DELETE FROM sessions")
    assert await accepted_for(anonymous, signed_in) < WITHIN_SECONDS

    await read_revocations(app)


async def test_a_database_that_was_set_back_is_read_from_the_beginning(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    """After a restore, transaction ids are lower than those read before."""
    state_of(app).revocation_list._horizon = 2**62
    await execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await execute("DELETE FROM sessions")
    await accepted_for(anonymous, signed_in)


async def test_a_shorter_lifetime_revives_no_token(
    settings: Settings, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revoked token that was signed for an hour stays refused for that hour."""
    monkeypatch.setenv("APP_ACCESS_TOKEN_LIFETIME", "3600")
    async with running_app(settings) as (_, client):
        await register(client)
        ended = tokens_of(await by_password(client))
        await client.post("/auth/logout", headers=ended.header)
    monkeypatch.setenv("APP_ACCESS_TOKEN_LIFETIME", "60")
    await execute("UPDATE revocations SET created_at = created_at - interval '50 minutes'")
    async with running_app(settings) as (app, client):
        await run_until_idle(app, purge_expired_sessions)
    async with running_app(settings) as (app, client):
        await read_revocations(app)
        assert await status_with(client, ended.header) == 401


async def test_a_transaction_that_commits_late_is_not_overlooked(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, database_url: str, execute: Execute
) -> None:
    """Its row has a lower transaction id than rows that were read already."""
    revocation_list = state_of(app).revocation_list
    late = await asyncpg.connect(database_url)
    async with late.transaction():
        await late.execute("DELETE FROM sessions")
        early = tokens_of(await by_password(anonymous))
        await anonymous.post("/auth/logout", headers=early.header)
        await revocation_list.sync()
        assert await status_with(anonymous, signed_in.header) == 200
    await late.close()
    await revocation_list.sync()
    assert await status_with(anonymous, signed_in.header) == 401


async def test_authentication_asks_the_database_nothing(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens
) -> None:
    """Counts SQLAlchemy's statements; the polling connection, which bypasses it, is closed."""
    revocation_list = state_of(app).revocation_list
    await revocation_list.stop()
    assert revocation_list._connection is None
    revocation_list._polled_at = float("inf")
    for _ in range(3):
        with recorded_queries() as statements:
            assert await status_with(anonymous, signed_in.header) == 200
        assert [s for s in statements if "sessions" in s or "signing_keys" in s] == []
        assert len(statements) == 1, "the account itself, for the answer"


async def test_what_has_ended_is_remembered_until_the_last_token_has_expired() -> None:
    async def on_key_ids(*_: object) -> None: ...

    lifetime, now = timedelta(minutes=15), 10_000.0
    revocation_list = RevocationList(None, lifetime, on_key_ids)  # type: ignore[arg-type]  # never used
    last_valid, later = (now - (lifetime.total_seconds() + LEEWAY_SECONDS) + 1, now - 2_000)
    ids = [uuid4(), uuid4()]
    revocation_list._last_read = {ids[0]: later, ids[1]: last_valid}
    revocation_list._drop_expired(now)
    assert ids[0] not in revocation_list
    assert ids[1] in revocation_list
