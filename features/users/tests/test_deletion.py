"""A deleted account is gone for all readers at once; its rows are removed afterwards."""

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.users.accounts.deletion import remove_deleted_accounts
from features.users.state import state_of
from features.users.tests.conftest import (
    EMAIL,
    Execute,
    Tokens,
    by_password,
    by_refresh,
    register,
    running_app,
    tokens_of,
)
from features.users.tests.races import Race, open_transaction
from shared.settings import Settings
from tests.kit import run_all_tasks, run_until_idle

PASS_HOURS = "UPDATE users SET deleted_at = deleted_at - interval '3 hours'"


async def test_nothing_of_a_deleted_account_can_be_read(
    anonymous: AsyncClient, admin: AsyncClient, signed_in: Tokens
) -> None:
    key = await anonymous.post(
        "/users/me/api-keys",
        json={"name": "import", "scopes": ["users:self"]},
        headers=signed_in.header,
    )
    me = (await anonymous.get("/users/me", headers=signed_in.header)).json()
    total = (await admin.get("/users")).json()["total"]
    assert (await anonymous.delete("/users/me", headers=signed_in.header)).status_code == 204
    for header in (signed_in.header, {"X-API-Key": key.json()["key"]}):
        assert (await anonymous.get("/users/me", headers=header)).status_code == 401
    assert (await by_password(anonymous)).status_code == 400
    assert (await by_refresh(anonymous, signed_in.refresh)).status_code == 400
    url = f"/users/{me['id']}"
    for gone in (
        await admin.get(url),
        await admin.patch(url, json={"is_active": True}),
        await admin.delete(url),
    ):
        assert gone.status_code == 404
    listed = (await admin.get("/users")).json()
    assert listed["total"] == total - 1
    assert me["id"] not in {each["id"] for each in listed["items"]}
    assert (await admin.get("/users", params={"q": EMAIL})).json()["total"] == 0


async def test_its_address_is_free_at_once(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    for _ in range(2):
        await anonymous.delete("/users/me", headers=signed_in.header)
        await register(anonymous)
        signed_in = tokens_of(await by_password(anonymous))
    await anonymous.delete("/users/me", headers=signed_in.header)
    personal = "SELECT FROM users WHERE deleted_at IS NULL OR email <> '' OR name IS NOT NULL"
    assert await execute(f"{personal} OR password_hash IS NOT NULL") == []
    await execute(PASS_HOURS)
    await run_all_tasks(app)
    assert await execute("SELECT FROM users") == []


async def test_what_no_feature_owns_goes_with_it(
    app: FastAPI,
    anonymous: AsyncClient,
    signed_in: Tokens,
    execute: Execute,
) -> None:
    """Events, stored answers, mail and requests for mail; those of others stay."""
    await register(anonymous, "grace@example.com")
    for email in (EMAIL, "grace@example.com"):
        await anonymous.post("/auth/password/forgot", json={"email": email})
    await execute(
        "INSERT INTO idempotency_keys SELECT id, n, '', 201, '{}', '', now() + interval '1 day'"
        " FROM users, generate_series(1, 1500) AS n"
    )
    await execute(
        "INSERT INTO account_events (id, user_id, kind, address, user_agent)"
        " SELECT gen_random_uuid(), id, 'signed_in', '', '' FROM users, generate_series(1, 7000)"
    )
    ids = {row["email"]: row["id"] for row in await execute("SELECT email, id FROM users")}

    async def counts(email: str) -> list[int]:
        found = [
            await execute(f"SELECT FROM {table} WHERE {column} = $1", value)
            for table, column, value in (
                ("outgoing_mail", "recipient", email),
                ("reset_requests", "email", email),
                ("account_events", "user_id", ids[email]),
                ("idempotency_keys", "owner_id", ids[email]),
            )
        ]
        return [len(rows) for rows in found]

    assert await counts(EMAIL) == [1, 1, 7_002, 1_500]
    await anonymous.delete("/users/me", headers=signed_in.header)
    assert (await counts(EMAIL))[:2] == [0, 0]
    assert (await counts("grace@example.com"))[:2] == [1, 1]
    await run_all_tasks(app)
    assert await counts(EMAIL) == [0, 0, 0, 0]
    assert (await counts("grace@example.com"))[2:] == [7_002, 1_500]


async def test_its_row_goes_last(
    app: FastAPI, anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    """While a subscriber has work, a request is adding to it, or one may be under way."""
    await anonymous.delete("/users/me", headers=signed_in.header)
    (row,) = await execute("SELECT id FROM users")
    await execute("DELETE FROM outbox_changes")
    assert await run_until_idle(app, remove_deleted_accounts) == 0
    await execute(PASS_HOURS)
    await execute(
        "INSERT INTO outbox_changes (owner_id, topic, kind, ids, waiting)"
        " VALUES ($1, 'accounts', 'deleted', ARRAY[]::uuid[], ARRAY['another'])",
        row["id"],
    )
    assert await run_until_idle(app, remove_deleted_accounts) == 0
    await execute("DELETE FROM outbox_changes")
    async with open_transaction(app.state.settings.database_url, "SELECT FROM users FOR KEY SHARE"):
        assert await run_until_idle(app, remove_deleted_accounts) == 0
    assert await run_until_idle(app, remove_deleted_accounts) > 0
    assert await execute("SELECT FROM users") == []


async def test_its_deletion_waits_for_no_import(
    anonymous: AsyncClient, signed_in: Tokens, database_url: str
) -> None:
    """An import refers to the account for as long as it takes."""
    async with open_transaction(database_url, "SELECT FROM users FOR KEY SHARE"):
        deleted = await anonymous.delete("/users/me", headers=signed_in.header)
        assert deleted.status_code == 204
        await register(anonymous)


@pytest.mark.parametrize("sign_in", ["password", "refresh"])
async def test_a_sign_in_that_waited_for_the_deletion_is_refused(
    anonymous: AsyncClient, signed_in: Tokens, race: Race, database_url: str, sign_in: str
) -> None:
    mark = "UPDATE users SET deleted_at = now(), email = ''"
    async with open_transaction(database_url, mark, "DELETE FROM sessions"):
        await race.start(
            by_password(anonymous)
            if sign_in == "password"
            else by_refresh(anonymous, signed_in.refresh)
        )
    assert await race.statuses() == [400]


async def test_one_that_cannot_be_removed_does_not_keep_the_others(
    app: FastAPI, anonymous: AsyncClient, execute: Execute, database_url: str
) -> None:
    for email in (EMAIL, "grace@example.com"):
        await register(anonymous, email)
        tokens = tokens_of(await by_password(anonymous, email))
        await anonymous.delete("/users/me", headers=tokens.header)
    await execute(PASS_HOURS)
    first = "SELECT FROM users WHERE id = (SELECT min(id::text)::uuid FROM users) FOR KEY SHARE"
    async with open_transaction(database_url, first):
        await run_all_tasks(app)
        assert len(await execute("SELECT FROM users")) == 1


async def test_another_process_refuses_it_at_once_without_its_list(
    anonymous: AsyncClient, signed_in: Tokens, settings: Settings
) -> None:
    async with running_app(settings) as (other, client):
        await state_of(other).revocation_list.stop()
        assert (await client.get("/users/me", headers=signed_in.header)).status_code == 200
        await anonymous.delete("/users/me", headers=signed_in.header)
        assert (await client.get("/users/me", headers=signed_in.header)).status_code == 401
