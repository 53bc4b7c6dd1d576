"""What the OpenAPI document cannot tell of accounts, for tests/contract/test_contract.py."""

import asyncio
import secrets

import asyncpg
import httpx

_PASSWORD = secrets.token_urlsafe(16)

BEYOND_SCHEMA = {
    "Should be one of": "the scopes are those of the account's role",
    "Should be in the future": "a schema knows no clock",
    "one of the most common passwords": "there are 30,000 of them",
    "The password must not be the email": "a schema cannot compare two fields",
}
"""What a refusal of a body that is valid in the document may say, each with the reason."""

MORE_ACCEPTED = {
    "email": r"[^!-~]|<|--",  # other scripts, a name, spaces around it, Punycode
}
"""Fields of which more is accepted than the document promises: a pattern of such values."""

ENDING = {
    "passwords_change": "ends the other sessions",
    "sessions_delete_all": "ends the session",
    "sessions_logout": "ends the session",
    "users_delete_me": "ends the account",
}
"""Operations that end the account or the session that calls them: they use one of their own."""

UNREACHED = {
    "auth_token": "needs a password or a token of an account",
    "passwords_change": "needs the password of the account",
    "passwords_reset": "needs a token from a mail",
    "users_verify_email": "needs a token from a mail",
}
"""What cannot succeed with what the document tells, each with the reason."""


def sign_in(client: httpx.Client, database_url: str) -> dict[str, str]:
    """Makes an administrator, who may call everything, and returns the headers of their requests.

    The key goes into the one of the two headers that schemathesis does not fill by itself.
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
