"""A way into an account takes a recent sign-in, never widens scopes, and is announced by mail."""

from datetime import timedelta
from uuid import uuid4

import pytest
import time_machine
from httpx import AsyncClient, Response

from features.users.tests.conftest import (
    EMAIL,
    Execute,
    MailedToken,
    SentMail,
    Tokens,
    by_password,
    by_refresh,
    register,
    status_with,
    tokens_of,
)
from tests.kit import SignUp, eventually

KEY = {"name": "nightly import", "scopes": ["users:self"]}
NEW_PASSWORD = "another long enough password"
LATER = timedelta(minutes=11)


async def user_id(client: AsyncClient) -> str:
    return str((await client.get("/users/me")).json()["id"])


@pytest.mark.parametrize(
    ("method", "path", "body", "done"),
    [
        ("POST", "/users/me/api-keys", KEY, 201),
        ("POST", "/users/me/identities/nobody", None, 404),
        ("DELETE", "/users/me", None, 204),
    ],
)
async def test_a_way_in_takes_a_recent_sign_in(
    anonymous: AsyncClient,
    method: str,
    path: str,
    body: dict[str, object] | None,
    done: int,
) -> None:
    """So does the deletion of an account. A refresh is not enough: a stolen refresh token would do.
    404: the provider does not exist."""

    async def ask(tokens: Tokens) -> Response:
        return await anonymous.request(method, path, json=body, headers=tokens.header)

    for email in (EMAIL, "grace@example.com"):
        await register(anonymous, email)
    assert (await ask(tokens_of(await by_password(anonymous)))).status_code == done
    other = tokens_of(await by_password(anonymous, email="grace@example.com"))
    with time_machine.travel(LATER, tick=True):
        refreshed = tokens_of(await by_refresh(anonymous, other.refresh))
        refused = await ask(refreshed)
        assert refused.status_code == 401
        challenge = refused.headers["www-authenticate"]
        assert 'error="insufficient_user_authentication"' in challenge
        assert 'max_age="600"' in challenge
        assert "sign in again" in refused.json()["detail"]
        assert await status_with(anonymous, refreshed.header) == 200
        again = tokens_of(await by_password(anonymous, email="grace@example.com"))
        assert (await ask(again)).status_code == done


@pytest.mark.parametrize("change", [{"role": "admin"}, {"is_active": True}])
async def test_an_administrator_grants_access_after_a_recent_sign_in(
    admin: AsyncClient, client: AsyncClient, change: dict[str, object]
) -> None:
    url = f"/users/{await user_id(client)}"
    with time_machine.travel(LATER, tick=True):
        refused = await admin.patch(url, json=change)
        assert "insufficient_user_authentication" in refused.headers["www-authenticate"]
        assert (await admin.patch(url, json={"is_active": False})).status_code == 200
    assert (await admin.patch(url, json=change)).status_code == 200


async def test_a_narrowed_session_opens_nothing_wider(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    """By a linked identity one signs in with all scopes."""
    narrow = tokens_of(await by_password(anonymous, scope="users:self"))
    by_refreshing = tokens_of(await by_refresh(anonymous, signed_in.refresh, scope="users:self"))
    all_scopes = (await by_password(anonymous)).json()["scope"].split()
    others = [scope for scope in all_scopes if scope != "users:self"]
    for tokens in (narrow, by_refreshing) if others else ():
        linked = await anonymous.post("/users/me/identities/nobody", headers=tokens.header)
        assert linked.status_code == 403
        assert "insufficient_scope" in linked.headers["www-authenticate"]
        body = {"name": "wide", "scopes": all_scopes}
        made = await anonymous.post("/users/me/api-keys", json=body, headers=tokens.header)
        assert made.status_code == 422
    await execute("UPDATE users SET role = 'admin'")
    admin = tokens_of(await by_password(anonymous, scope="users:admin"))
    await register(anonymous, "grace@example.com")
    users = (await anonymous.get("/users", headers=admin.header)).json()["items"]
    (grace,) = (user["id"] for user in users if user["email"] != EMAIL)
    promoted = await anonymous.patch(
        f"/users/{grace}", json={"role": "admin"}, headers=admin.header
    )
    assert promoted.status_code == 403
    assert "users:self" in promoted.headers["www-authenticate"]


async def test_the_owner_is_told_of_each_way_in(
    admin: AsyncClient, sign_up: SignUp, sent_mail: SentMail
) -> None:
    owner = await sign_up(EMAIL)
    await owner.post("/users/me/api-keys", json=KEY)
    url = f"/users/{await user_id(owner)}"
    for change in ({"name": "Ada"}, {"is_active": True}, {"role": "admin"}):
        assert (await admin.patch(url, json=change)).status_code == 200
    subjects = [mail["subject"] for mail in await sent_mail(EMAIL)]
    assert subjects[1:] == [
        "An API key was made for your account",
        "An administrator changed what your account may do",
    ]


@pytest.mark.parametrize(
    ("is_verified", "keep", "status"),
    [(True, False, 401), (True, True, 200), (False, True, 401)],
)
async def test_a_reset_ends_every_way_in_but_keys_that_are_to_be_kept(
    anonymous: AsyncClient,
    signed_in: Tokens,
    execute: Execute,
    mailed_token: MailedToken,
    is_verified: bool,
    keep: bool,
    status: int,
) -> None:
    """Those of an account whose address is not verified may be of an attacker who registered it."""
    made = await anonymous.post("/users/me/api-keys", json=KEY, headers=signed_in.header)
    await execute(
        "INSERT INTO identities (id, user_id, issuer, subject) SELECT $1, id, 'i', 's' FROM users",
        uuid4(),
    )
    await execute("UPDATE users SET email_verified = $1", is_verified)
    await anonymous.post("/auth/password/forgot", json={"email": EMAIL})
    reset = {"token": await mailed_token(EMAIL, "reset"), "new_password": NEW_PASSWORD}
    more = {"keep_api_keys": True} if keep else {}
    answer = await anonymous.post("/auth/password/reset", json=reset | more)
    assert answer.status_code == 204, answer.text
    assert await status_with(anonymous, signed_in.header) == 401
    assert await status_with(anonymous, {"X-API-Key": made.json()["key"]}) == status
    assert await execute("SELECT FROM identities") == []


async def test_the_keys_of_a_deactivated_account_rest(
    anonymous: AsyncClient, admin: AsyncClient, signed_in: Tokens
) -> None:
    made = await anonymous.post("/users/me/api-keys", json=KEY, headers=signed_in.header)
    key = {"X-API-Key": made.json()["key"]}
    me = (await anonymous.get("/users/me", headers=key)).json()
    for is_active, status in ((False, 401), (True, 200)):
        changed = await admin.patch(f"/users/{me['id']}", json={"is_active": is_active})
        assert changed.status_code == 200

        async def is_answered(expected: int = status) -> bool:
            return await status_with(anonymous, key) == expected

        await eventually(is_answered, f"a {status}, once the cached key has expired")
