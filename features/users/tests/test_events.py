"""The audit log of an account."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from features.users.events import tasks
from features.users.events.tasks import delete_old_events
from features.users.tests.conftest import (
    Execute,
    Tokens,
    by_password,
    by_refresh,
    tokens_of,
)
from shared.db.tables import uuid7
from tests.kit import PASSWORD


async def test_what_happens_to_an_account_is_on_record(
    anonymous: AsyncClient, admin: AsyncClient, signed_in: Tokens
) -> None:
    anonymous.headers["User-Agent"] = "Phone/1.0"
    await by_password(anonymous, password="wrong password")
    new = "another long enough password"
    await anonymous.put(
        "/users/me/password",
        json={"current_password": PASSWORD, "new_password": new},
        headers=signed_in.header,
    )
    key = await anonymous.post(
        "/users/me/api-keys",
        json={"name": "import", "scopes": ["users:self"]},
        headers=signed_in.header,
    )
    url = f"/users/me/api-keys/{key.json()['id']}"
    await anonymous.delete(url, headers=signed_in.header)
    me = (await anonymous.get("/users/me", headers=signed_in.header)).json()
    await admin.patch(f"/users/{me['id']}", json={"role": "admin"})
    again = tokens_of(await by_password(anonymous, password=new))

    answer = await anonymous.get("/users/me/events", headers=again.header)

    events = answer.json()["items"][::-1]
    assert [event["kind"] for event in events] == [
        "registered",
        "signed_in",
        "sign_in_failed",
        "password_changed",
        "api_key_created",
        "api_key_deleted",
        "role_changed",
        "signed_in",
    ]
    assert events[2]["user_agent"] == "Phone/1.0"
    assert events[2]["address"] == "127.0.0.1"
    assert events[4]["detail"] == "import"
    assert events[6]["detail"] == "user → admin"
    assert new not in answer.text


async def test_an_administrators_address_is_nobody_elses_business(
    anonymous: AsyncClient, admin: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    admin.headers["User-Agent"] = "Admin/9"
    me = (await anonymous.get("/users/me", headers=signed_in.header)).json()
    await admin.patch(f"/users/{me['id']}", json={"role": "admin"})
    again = tokens_of(await by_password(anonymous))
    answer = await anonymous.get(
        "/users/me/events", params={"kind": "role_changed"}, headers=again.header
    )
    (event,) = answer.json()["items"]
    assert (event["address"], event["user_agent"]) == (None, None)
    (row,) = await execute("SELECT * FROM account_events WHERE kind = 'role_changed'")
    assert str(row["actor_id"]) == (await admin.get("/users/me")).json()["id"]
    assert row["user_agent"] == "Admin/9"


async def test_of_a_deleted_account_its_id_is_left_and_who_deleted_it(
    admin: AsyncClient, client: AsyncClient, other_client: AsyncClient, execute: Execute
) -> None:
    ids = [(await each.get("/users/me")).json()["id"] for each in (admin, client, other_client)]
    await admin.delete(f"/users/{ids[1]}")
    await other_client.delete("/users/me")
    rows = await execute("SELECT * FROM account_events WHERE kind = 'deleted' ORDER BY id")
    found = [(str(row["actor_id"]), row["detail"], row["address"]) for row in rows]
    assert found == [(ids[0], ids[1], "127.0.0.1"), (ids[2], ids[2], "")]


async def test_events_are_paged_and_filtered(anonymous: AsyncClient, signed_in: Tokens) -> None:
    for _ in range(3):
        tokens_of(await by_refresh(anonymous, tokens_of(await by_password(anonymous)).refresh))
    query = {"kind": "signed_in", "limit": "3"}
    first = await anonymous.get("/users/me/events", params=query, headers=signed_in.header)
    assert first.json()["total"] == 4
    query["cursor"] = first.json()["next_cursor"]
    second = await anonymous.get("/users/me/events", params=query, headers=signed_in.header)
    assert len(second.json()["items"]) == 1


async def test_nobody_sees_anothers_events(client: AsyncClient, other_client: AsyncClient) -> None:
    mine = {event["id"] for event in (await client.get("/users/me/events")).json()["items"]}
    theirs = {event["id"] for event in (await other_client.get("/users/me/events")).json()["items"]}
    assert mine
    assert theirs
    assert not mine & theirs


async def test_a_failure_without_an_account_is_kept_too(
    anonymous: AsyncClient, execute: Execute
) -> None:
    await by_password(anonymous, email="nobody@example.com")
    (event,) = await execute("SELECT * FROM account_events")
    assert event["kind"] == "sign_in_failed"
    assert event["user_id"] is None


async def test_old_events_are_deleted_batch_by_batch(
    app: FastAPI, signed_in: Tokens, execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed sign-ins without an account go first: they hold the address of a stranger."""
    monkeypatch.setattr(tasks, "BATCH_SIZE", 2)
    await execute("DELETE FROM account_events")
    for days in (1, 31, 364, 366):
        made_at = datetime.now(UTC) - timedelta(days=days)
        for kind, user in (("signed_in", "id"), ("sign_in_failed", "NULL"), ("deleted", "NULL")):
            for _ in range(3):
                await execute(
                    "INSERT INTO account_events (id, user_id, kind, address, user_agent, detail)"
                    f" SELECT $1, {user}, '{kind}', '', '', '{days}' FROM users",
                    UUID(int=uuid7().int % (1 << 80) | int(made_at.timestamp() * 1_000) << 80),
                )
    await delete_old_events.run(app)
    rows = await execute(
        "SELECT kind, detail, count(*) FROM account_events GROUP BY 1, 2"
        ' ORDER BY detail::int, kind COLLATE "C"'
    )
    assert [tuple(row) for row in rows] == [
        ("deleted", "1", 3),
        ("sign_in_failed", "1", 3),
        ("signed_in", "1", 3),
        ("deleted", "31", 3),
        ("signed_in", "31", 3),
        ("deleted", "364", 3),
        ("signed_in", "364", 3),
    ]


async def test_old_events_are_found_by_an_index(execute: Execute) -> None:
    await execute(
        "INSERT INTO account_events (id, kind, address, user_agent)"
        " SELECT gen_random_uuid(), 'signed_in', '', '' FROM generate_series(1, 20000)"
    )
    await execute("ANALYZE account_events")
    plan = await execute(
        "EXPLAIN SELECT id FROM account_events WHERE id < '01000000-0000-7000-8000-000000000000'"
        " LIMIT 5000"
    )
    assert "pk_account_events" in "".join(row[0] for row in plan)
