"""How an account comes to have something of each kind, for tests/contract/test_privacy.py: for each
parameter in a path. What is written has the mark in it, by which a leak is seen."""

from uuid import uuid4

from httpx import AsyncClient


async def user(client: AsyncClient, _mark: str) -> str:
    return str((await client.get("/users/me")).json()["id"])


async def session(client: AsyncClient, _mark: str) -> str:
    return str((await client.get("/auth/sessions")).json()["items"][0]["id"])


async def api_key(client: AsyncClient, mark: str) -> str:
    key = {"name": f"{mark} key", "scopes": ["users:self"]}
    return str((await client.post("/users/me/api-keys", json=key)).json()["id"])


OWNED = {"user_id": user, "session_id": session, "key_id": api_key}

NOT_OWNED = {"provider": "nobody", "identity_id": str(uuid4())}
"""Parameters in paths that name nothing of an account, or what only a provider gives one (that
has tests of its own), with any value."""

OPEN = {
    "POST /users",
    "POST /auth/token",
    "POST /auth/email/verify",
    "POST /auth/password/forgot",
    "POST /auth/password/reset",
    "GET /auth/oidc/{provider}/login",
    "GET /auth/oidc/{provider}/callback",
    "GET /.well-known/jwks.json",
}
"""What needs no account, because it is how one gets in."""

REFUSED = {
    "GET /users",  # is for administrators
    "PUT /users/me/password",
    "POST /auth/token",
    "POST /auth/email/verify",
    "POST /auth/password/forgot",
    "POST /auth/password/reset",
}
"""What a stranger may not do, or what shows nothing of anybody."""
