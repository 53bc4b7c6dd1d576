"""For tests/contract/test_contract.py: what the OpenAPI document cannot express about accounts."""

import asyncio
import secrets

import asyncpg
import httpx

_PASSWORD = secrets.token_urlsafe(16)

UNDOCUMENTED_ERRORS = {
    "Should be one of": "the scopes are those of the account's role",
    "Should be in the future": "a schema knows no clock",
    "one of the most common passwords": "there are 30,000 of them",
    "The password must not be the email": "a schema cannot compare two fields",
}
"""Errors that a body may cause although it is valid in the document, each with the reason."""

UNDOCUMENTED_VALUES = {
    "email": r"[^!-~]|<|--",  # other scripts, a name, spaces around it, Punycode
}
"""Fields that accept more than the document says, each with a pattern of the extra values."""

SESSION_ENDING = {
    "passwords_change": "ends the other sessions",
    "sessions_delete_all": "ends the session",
    "sessions_logout": "ends the session",
    "users_delete_me": "ends the account",
}
"""Operations that end the account or session that calls them, so each uses a separate one."""

NEVER_SUCCEEDING = {
    "auth_token": "needs a password or a token of an account",
    "passwords_change": "needs the password of the account",
    "passwords_reset": "needs a token from a mail",
    "users_verify_email": "needs a token from a mail",
}
"""Operations that cannot succeed with data from the document alone, each with the reason."""


def sign_in(client: httpx.Client, database_url: str) -> dict[str, str]:
    """Creates an administrator, who may call all operations, and returns the request headers.

    The token is sent in `X-API-Key`, as schemathesis fills the other header itself.
    """
    email = f"{secrets.token_hex(8)}@example.com"
    client.post("/users", json={"email": email, "password": _PASSWORD}).raise_for_status()
    asyncio.run(_promote(database_url, email))
    form = {"grant_type": "password", "username": email, "password": _PASSWORD}
    granted = client.post("/auth/token", data=form).raise_for_status()
    return {"X-API-Key": str(granted.json()["access_token"])}


async def _promote(database_url: str, email: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("UPDATE users SET role = 'admin' WHERE email = $1", email)
    finally:
        await connection.close()
