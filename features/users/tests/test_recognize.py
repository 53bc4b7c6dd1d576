"""A credential that was just used is recognized without a wait, until it ends."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from fastapi import FastAPI
from httpx import AsyncClient

from features.users.access_tokens import revocation_list
from features.users.api_keys import cache
from features.users.authentication import recognize
from features.users.state import state_of
from features.users.tests.conftest import by_password, tokens_of

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _pauses_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE_SECONDS", 600)
    monkeypatch.setattr(revocation_list, "FRESH_SECONDS", 600)


@pytest.fixture
async def account(client: AsyncClient) -> str:
    account: str = (await client.get("/users/me")).json()["id"]
    return account


@pytest.fixture(params=["access token", "API key"])
async def credential(request: pytest.FixtureRequest, client: AsyncClient) -> str:
    if request.param == "access token":
        email = (await client.get("/users/me")).json()["email"]
        return tokens_of(await by_password(client, email)).access
    soon = (datetime.now(UTC) + HOUR).isoformat()
    body = {"name": "A machine", "scopes": ["users:self"], "expires_at": soon}
    key: str = (await client.post("/users/me/api-keys", json=body)).json()["key"]
    return key


def account_of(app: FastAPI, credential: str) -> str | None:
    principal = recognize(app, credential)
    return str(principal.user_id) if principal else None


async def use(client: AsyncClient, credential: str) -> None:
    used = await client.get("/users/me", headers={"Authorization": f"Bearer {credential}"})
    assert used.status_code == 200


async def test_a_credential_is_recognized_once_it_was_used_until_it_expires(
    app: FastAPI, anonymous: AsyncClient, account: str, credential: str
) -> None:
    assert account_of(app, credential) is None
    await use(anonymous, credential)
    assert account_of(app, credential) == account
    with time_machine.travel(2 * HOUR):
        assert account_of(app, credential) is None
    assert account_of(app, f"{credential}x") is None


async def test_a_credential_is_not_recognized_after_its_account_was_deleted(
    app: FastAPI, client: AsyncClient, anonymous: AsyncClient, account: str, credential: str
) -> None:
    await use(anonymous, credential)
    assert account_of(app, credential) == account
    assert (await client.delete("/users/me")).status_code == 204
    assert account_of(app, credential) is None


async def test_an_access_token_is_not_recognized_while_its_end_would_not_be_known(
    app: FastAPI, client: AsyncClient, account: str
) -> None:
    token = client.headers["Authorization"].removeprefix("Bearer ")
    assert account_of(app, token) == account
    await state_of(app).revocation_list.stop()
    assert account_of(app, token) is None
