"""Concurrent reads, updates and deletion of an account."""

from contextlib import AsyncExitStack

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.users.tests.races import Race, open_transaction
from shared.db import database_of


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/users/me", {"name": "Ada"}),
        ("DELETE", "/auth/sessions", None),
        ("POST", "/users/me/api-keys", {"name": "nightly import", "scopes": ["users:self"]}),
    ],
)
async def test_whoever_is_deleted_meanwhile_is_not_found(
    client: AsyncClient,
    race: Race,
    database_url: str,
    method: str,
    path: str,
    body: dict[str, object] | None,
) -> None:
    async with open_transaction(database_url, "DELETE FROM users"):
        await race.start(client.request(method, path, json=body))
    [response] = await race.answers()
    assert response.status_code == 401, response.text
    assert response.json()["detail"] == "User not found"


async def test_an_account_is_read_while_all_that_write_are_busy(
    app: FastAPI, client: AsyncClient
) -> None:
    async with AsyncExitStack() as held:
        for _ in range(app.state.settings.database_pool_size):
            await held.enter_async_context(database_of(app).transaction())
        response = await client.get("/users/me")
    assert response.status_code == 200, response.text
    assert response.json()["email"]
