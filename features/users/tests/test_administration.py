"""Administration: permissions, effects, and that the last administrator stays."""

import asyncio

import pytest
from httpx import AsyncClient

from features.users.tests.conftest import (
    EMAIL,
    Execute,
    Tokens,
    by_password,
    register,
    status_with,
    tokens_of,
)
from tests.kit import PASSWORD, Command, SignUp, eventually


async def my_id(client: AsyncClient) -> str:
    return str((await client.get("/users/me")).json()["id"])


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_administration_is_for_administrators(client: AsyncClient, method: str) -> None:
    body = {"is_active": True} if method == "PATCH" else None
    response = await client.request(method, f"/users/{await my_id(client)}", json=body)
    assert response.status_code == 403
    assert response.json()["detail"] == "This needs the scope users:admin"
    assert (await client.get("/users")).status_code == 403


async def test_accounts_are_listed_searched_and_paged(admin: AsyncClient, sign_up: SignUp) -> None:
    for name in ("ada", "grace", "radia"):
        await sign_up(f"{name}@example.com")
    everybody = (await admin.get("/users", params={"sort": "email"})).json()
    assert everybody["total"] == 4
    assert [user["email"] for user in everybody["items"]] == sorted(
        user["email"] for user in everybody["items"]
    )
    assert "password" not in str(everybody)
    found = (await admin.get("/users", params={"q": "RAD"})).json()
    assert [user["email"] for user in found["items"]] == ["radia@example.com"]
    admins = (await admin.get("/users", params={"role": "admin"})).json()
    me = (await admin.get("/users/me")).json()
    assert [user["id"] for user in admins["items"]] == [me["id"]]
    first = (await admin.get("/users", params={"sort": "email", "limit": 3})).json()
    second = await admin.get(
        "/users", params={"sort": "email", "limit": 3, "cursor": first["next_cursor"]}
    )
    assert [*first["items"], *second.json()["items"]] == everybody["items"]


async def test_a_deactivated_account_is_out_until_it_is_activated(
    admin: AsyncClient, anonymous: AsyncClient, signed_in: Tokens
) -> None:
    me = (await anonymous.get("/users/me", headers=signed_in.header)).json()
    url = f"/users/{me['id']}"
    deactivated = await admin.patch(url, json={"is_active": False})
    assert deactivated.json()["is_active"] is False
    assert await status_with(anonymous, signed_in.header) == 401
    refused = await by_password(anonymous)
    assert refused.json()["error_description"] == "The email or the password is wrong"
    await admin.patch(url, json={"is_active": True})
    assert await status_with(anonymous, signed_in.header) == 401, "what ended stays ended"
    tokens_of(await by_password(anonymous))


async def test_a_new_role_takes_effect_at_the_next_sign_in_which_is_forced(
    admin: AsyncClient, anonymous: AsyncClient, signed_in: Tokens
) -> None:
    me = (await anonymous.get("/users/me", headers=signed_in.header)).json()
    await admin.patch(f"/users/{me['id']}", json={"role": "admin"})
    assert await status_with(anonymous, signed_in.header) == 401
    promoted = tokens_of(await by_password(anonymous))
    assert (await anonymous.get("/users", headers=promoted.header)).status_code == 200
    await admin.patch(f"/users/{me['id']}", json={"role": "user"})
    assert (await anonymous.get("/users", headers=promoted.header)).status_code == 401


async def test_raw_sql_ends_access_too(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    await execute("UPDATE users SET is_active = false")
    assert await execute("SELECT 1 FROM sessions") == []

    async def refused() -> bool:
        return await status_with(anonymous, signed_in.header) == 401

    await eventually(refused, "a 401 for what has ended")


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_an_administrators_key_administers_nobody(
    admin: AsyncClient, client: AsyncClient, anonymous: AsyncClient, method: str
) -> None:
    """A stolen key must not be able to create or delete an administrator."""
    new = {"name": "stolen", "scopes": ["users:admin", "users:self"]}
    made = await admin.post("/users/me/api-keys", json=new)
    anonymous.headers["X-API-Key"] = made.json()["key"]
    assert (await anonymous.get("/users")).status_code == 200
    body = {"role": "admin"} if method == "PATCH" else None
    for of in (client, admin):
        refused = await anonymous.request(method, f"/users/{await my_id(of)}", json=body)
        assert refused.status_code == 403
        assert "API key" in refused.json()["detail"]


async def test_an_administrator_deletes_an_account(admin: AsyncClient, client: AsyncClient) -> None:
    url = f"/users/{await my_id(client)}"
    assert (await admin.get(url)).json() == (await client.get("/users/me")).json()
    assert (await admin.delete(url)).status_code == 204
    assert (await client.get("/users/me")).json()["detail"] == "User not found"
    for gone in (await admin.get(url), await admin.delete(url)):
        assert gone.status_code == 404


@pytest.mark.parametrize("change", [{"role": "user"}, {"is_active": False}])
async def test_the_last_administrator_stays(admin: AsyncClient, change: dict[str, object]) -> None:
    url = f"/users/{await my_id(admin)}"
    for refused in (
        await admin.patch(url, json=change),
        await admin.delete(url),
        await admin.delete("/users/me"),
    ):
        assert refused.status_code == 409
        assert "last administrator" in refused.json()["detail"]
    assert (await admin.get(url)).status_code == 200
    assert (await admin.patch(url, json={"name": "Root"})).status_code == 200


async def test_two_administrators_who_remove_each_other_leave_one(
    admin: AsyncClient, anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    ids = [row["id"] for row in await execute("SELECT id FROM users")]
    await execute("UPDATE users SET role = 'admin'")
    answers = await asyncio.gather(
        *(admin.patch(f"/users/{user_id}", json={"role": "user"}) for user_id in ids)
    )
    done, refused = sorted(answer.status_code for answer in answers)
    assert done == 200
    assert refused in {401, 409}  # 401 if the other one was demoted before it asked
    left = await execute("SELECT 1 FROM users WHERE role = 'admin'")
    assert len(left) == 1


async def test_a_command_promotes_an_account(
    anonymous: AsyncClient, command: Command, execute: Execute
) -> None:
    await register(anonymous)
    await execute("UPDATE users SET email_verified = true, is_active = false")
    done = await command("create-admin", EMAIL.upper())
    assert done.exit_code == 0, done.output
    assert f"{EMAIL} is an administrator" in done.output
    promoted = await by_password(anonymous)
    assert "users:admin" in promoted.json()["scope"]
    header = tokens_of(promoted).header
    events = (await anonymous.get("/users/me/events", headers=header)).json()["items"]
    assert {event["kind"] for event in events} >= {"role_changed", "activated"}


async def test_a_command_does_not_promote_who_squats_the_address(
    anonymous: AsyncClient, command: Command
) -> None:
    """An attacker registered the address of a future administrator."""
    await register(anonymous)
    squatter = tokens_of(await by_password(anonymous))
    key = {"name": "mine", "scopes": ["users:self"]}
    made = await anonymous.post("/users/me/api-keys", json=key, headers=squatter.header)
    chosen = "chosen by the operator"
    done = await command("create-admin", EMAIL, stdin=f"{chosen}\n{chosen}\n")
    assert done.exit_code == 0, done.output
    assert (await by_password(anonymous)).status_code == 400
    assert "users:admin" in (await by_password(anonymous, password=chosen)).json()["scope"]
    for header in (squatter.header, {"X-API-Key": made.json()["key"]}):

        async def refused(header: dict[str, str] = header) -> bool:
            return await status_with(anonymous, header) == 401

        await eventually(refused, "a 401 for what has ended")


async def test_a_command_adds_an_administrator(anonymous: AsyncClient, command: Command) -> None:
    typed = f"{PASSWORD}\n{PASSWORD}\n"
    done = await command("create-admin", EMAIL, stdin=typed)
    assert done.exit_code == 0, done.output
    assert PASSWORD not in done.output
    assert "users:admin" in (await by_password(anonymous)).json()["scope"]
    weak = await command("create-admin", "b@example.com", stdin="password1\npassword1\n")
    assert weak.exit_code == 1
    assert "most common" in weak.output
