"""API keys: scopes, expiry, and immediate revocation when they are deleted."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from httpx import AsyncClient

from features.users.tests.conftest import Execute, age_of_last_accepted, status_with
from tests.kit import SignUp


async def new_key(client: AsyncClient, *scopes: str, **more: Any) -> dict[str, Any]:
    body = {"name": "nightly import", "scopes": scopes or ["users:self"], **more}
    response = await client.post("/users/me/api-keys", json=body)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


def either_way(key: str) -> tuple[dict[str, str], dict[str, str]]:
    return {"X-API-Key": key}, {"Authorization": f"Bearer {key}"}


async def test_a_key_works_in_either_header(client: AsyncClient, anonymous: AsyncClient) -> None:
    key = (await new_key(client))["key"]
    assert key.startswith("tsk_")
    for header in either_way(key):
        assert await status_with(anonymous, header) == 200


async def test_a_key_is_shown_once_and_hashed(client: AsyncClient, execute: Execute) -> None:
    created = await new_key(client)
    listed = await client.get("/users/me/api-keys")
    assert created["key"] not in listed.text
    (row,) = listed.json()["items"]
    assert row == {name: value for name, value in created.items() if name != "key"}
    assert created["key"].startswith(row["hint"])
    (stored,) = await execute("SELECT * FROM api_keys")
    assert created["key"] not in str(dict(stored))


async def test_a_key_may_do_what_its_scopes_say(
    client: AsyncClient, anonymous: AsyncClient
) -> None:
    key = (await new_key(client, "users:self"))["key"]
    header = {"X-API-Key": key}
    assert await status_with(anonymous, header) == 200
    refused = await anonymous.get("/users", headers=header)
    assert refused.status_code == 403
    assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]


async def test_a_key_cannot_have_what_its_maker_has_not(client: AsyncClient) -> None:
    body = {"name": "root", "scopes": ["users:self", "users:admin"]}
    refused = await client.post("/users/me/api-keys", json=body)
    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/scopes/1"]


async def test_a_key_expires(client: AsyncClient, anonymous: AsyncClient) -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    key = (await new_key(client, expires_at=soon))["key"]
    assert await status_with(anonymous, {"X-API-Key": key}) == 200
    with time_machine.travel(timedelta(hours=2), tick=True):
        assert await status_with(anonymous, {"X-API-Key": key}) == 401


async def test_a_key_cannot_begin_expired(client: AsyncClient) -> None:
    body = {"name": "late", "scopes": ["users:self"], "expires_at": "2020-01-01T00:00:00Z"}
    refused = await client.post("/users/me/api-keys", json=body)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/expires_at"


async def test_the_last_use_is_kept(client: AsyncClient, anonymous: AsyncClient) -> None:
    created = await new_key(client)
    assert created["last_used_at"] is None
    await status_with(anonymous, {"X-API-Key": created["key"]})
    (row,) = (await client.get("/users/me/api-keys")).json()["items"]
    assert row["last_used_at"] > created["created_at"]


async def test_a_deleted_key_is_refused_at_once(
    client: AsyncClient, anonymous: AsyncClient
) -> None:
    created = await new_key(client)
    header = {"X-API-Key": created["key"]}
    assert await status_with(anonymous, header) == 200
    url = f"/users/me/api-keys/{created['id']}"
    assert (await client.delete(url)).status_code == 204
    assert await status_with(anonymous, header) == 401
    assert (await client.delete(url)).status_code == 404


async def test_a_strangers_key_does_not_exist(
    client: AsyncClient, other_client: AsyncClient
) -> None:
    created = await new_key(client)
    url = f"/users/me/api-keys/{created['id']}"
    assert (await other_client.delete(url)).status_code == 404
    assert (await other_client.get("/users/me/api-keys")).json()["items"] == []


WAYS_IN: list[tuple[str, str]] = [
    ("POST", "/users/me/api-keys"),
    ("GET", "/users/me/api-keys"),
    ("PUT", "/users/me/password"),
    ("POST", "/auth/logout"),
    ("GET", "/auth/sessions"),
    ("DELETE", "/auth/sessions"),
    ("DELETE", "/users/me"),
]


async def test_a_key_cannot_touch_the_ways_into_the_account(
    client: AsyncClient, anonymous: AsyncClient, subtests: pytest.Subtests
) -> None:
    """A stolen key must not be able to create another, or to lock its owner out."""
    for method, path in WAYS_IN:
        with subtests.test(method=method, path=path):
            key = (await new_key(client))["key"]
            body = {
                "/users/me/api-keys": {"name": "another", "scopes": ["users:self"]},
                "/users/me/password": {"current_password": "x" * 8, "new_password": "y" * 20},
            }.get(path)
            if method in {"GET", "DELETE"}:
                body = None
            response = await anonymous.request(method, path, json=body, headers={"X-API-Key": key})
            assert response.status_code == 403
            assert "API key" in response.json()["detail"]


async def test_a_key_stops_with_its_account_and_begins_again(
    admin: AsyncClient, sign_up: SignUp, anonymous: AsyncClient
) -> None:
    client = await sign_up()
    header = {"X-API-Key": (await new_key(client))["key"]}
    user_id = (await client.get("/users/me")).json()["id"]
    await admin.patch(f"/users/{user_id}", json={"is_active": False})
    assert await status_with(anonymous, header) == 401
    await admin.patch(f"/users/{user_id}", json={"is_active": True})
    assert await status_with(anonymous, header) == 200


async def test_an_administrators_key_loses_what_its_owner_loses(
    admin: AsyncClient, anonymous: AsyncClient, execute: Execute
) -> None:
    """A change of role by SQL applies to API keys within a second, without a notification."""
    header = {"X-API-Key": (await new_key(admin, "users:admin"))["key"]}
    assert (await anonymous.get("/users", headers=header)).status_code == 200
    await execute("UPDATE users SET role = 'user'")

    async def refused() -> bool:
        return (await anonymous.get("/users", headers=header)).status_code == 403

    assert await age_of_last_accepted(refused, "a 403 for the key") < 1
