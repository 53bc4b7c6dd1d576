"""The accounts of the kit's clients are those that requests create."""

from typing import Any

from fastapi import FastAPI
from httpx import AsyncClient

from features.users.tests.accounts import create_account
from features.users.tests.conftest import EMAIL, Execute, SentMail, by_password, register, tokens_of

NEW_FOR_EACH = {"id", "user_id", "session_id", "family_hash", "email", "hash", "password_hash"}


async def test_an_account_of_the_kit_has_the_rows_of_a_registration_and_a_sign_in(
    app: FastAPI, anonymous: AsyncClient, execute: Execute, sent_mail: SentMail
) -> None:
    await create_account(app, "grace@example.com")
    await register(anonymous)
    tokens_of(await by_password(anonymous))
    assert await rows_of(execute, "grace@example.com") == await rows_of(execute, EMAIL)
    by_kit, by_request = await sent_mail("grace@example.com"), await sent_mail(EMAIL)
    assert [mail["subject"] for mail in by_kit] == [mail["subject"] for mail in by_request]


async def rows_of(execute: Execute, email: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the account's rows by table, without times and ids."""
    ((user_id,),) = await execute("SELECT id FROM users WHERE email = $1", email)
    tables = {
        "users": "id = $1",
        "sessions": "user_id = $1",
        "refresh_tokens": "session_id IN (SELECT id FROM sessions WHERE user_id = $1)",
        "account_events": "user_id = $1",
    }
    found = {}
    for table, condition in tables.items():
        rows = await execute(f"SELECT * FROM {table} WHERE {condition} ORDER BY 1", user_id)
        assert rows, table
        found[table] = [
            {
                name: value
                for name, value in row.items()
                if name not in NEW_FOR_EACH and not name.endswith("_at")
            }
            for row in rows
        ]
    return found
