"""An import whose access ends while it is being sent changes nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from tests.kit import PASSWORD, connect, within

End = Callable[[AsyncClient, AsyncClient, str], Awaitable[object]]
ROW = b'{"external_id": "M", "title": "Mug", "price": 1}\n'


async def sign_in(client: AsyncClient, email: str, password: str = PASSWORD) -> str:
    form = {"grant_type": "password", "username": email, "password": password}
    answer = await client.post("/auth/token", data=form)
    return f"Bearer {answer.json()['access_token']}"


async def change_password(owner: AsyncClient, _admin: AsyncClient, _user: str) -> object:
    change = {"current_password": PASSWORD, "new_password": f"{PASSWORD} 2"}
    return await owner.put("/users/me/password", json=change)


async def sign_out_others(owner: AsyncClient, _admin: AsyncClient, _user: str) -> object:
    return await owner.delete("/auth/sessions")


async def delete_keys(owner: AsyncClient, _admin: AsyncClient, _user: str) -> object:
    (key,) = (await owner.get("/users/me/api-keys")).json()["items"]
    return await owner.delete(f"/users/me/api-keys/{key['id']}")


async def deactivate(_owner: AsyncClient, admin: AsyncClient, user: str) -> object:
    return await admin.patch(f"/users/{user}", json={"is_active": False})


async def delete_account(owner: AsyncClient, _admin: AsyncClient, _user: str) -> object:
    return await owner.delete("/users/me")


@pytest.mark.parametrize(
    ("credential", "end"),
    [
        ("session", change_password),
        ("session", sign_out_others),
        ("session", deactivate),
        ("session", delete_account),
        ("key", delete_keys),
        ("key", deactivate),
        ("key", delete_account),
    ],
)
async def test_an_import_whose_access_has_ended_meanwhile_changes_nothing(
    app: FastAPI, client: AsyncClient, admin: AsyncClient, credential: str, end: End
) -> None:
    me = (await client.get("/users/me")).json()
    new_key = {"name": "nightly", "scopes": ["items:write", "items:read"]}
    key = (await client.post("/users/me/api-keys", json=new_key)).json()["key"]
    stolen = {"Authorization": client.headers["authorization"]}
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield ROW
        begun.set()
        await gate.wait()
        yield ROW.replace(b"M", b"N")

    async with connect(app, headers={"X-API-Key": key} if credential == "key" else stolen) as thief:
        headers = {"Content-Type": "application/jsonl"}
        upload = thief.post("/items/import", content=slowly(), headers=headers)
        importing = asyncio.create_task(upload)
        async with within(30, "the beginning of the upload"):
            await begun.wait()
        client.headers["Authorization"] = await sign_in(client, me["email"])
        await end(client, admin, me["id"])
        gate.set()
        answer = await importing
    assert answer.status_code == 401, answer.text
    assert "nothing was changed" in answer.json()["detail"]
    assert "invalid_token" in answer.headers["www-authenticate"]
    if end is deactivate:
        await admin.patch(f"/users/{me['id']}", json={"is_active": True})
        client.headers["Authorization"] = await sign_in(client, me["email"])
    if end is not delete_account:
        assert (await client.get("/items")).json()["total"] == 0
        again = await client.post("/items/import", content=ROW, headers=headers)
        assert again.json()["created"] == 1
