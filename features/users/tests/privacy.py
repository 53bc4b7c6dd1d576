"""For tests/contract/test_privacy.py: creates an object of the account for each path parameter.

The text that is written contains the mark, so that a leak can be detected.
"""

from uuid import uuid4

from httpx import AsyncClient


async def user(client: AsyncClient, _mark: str) -> str:
    return str((await client.get("/users/me")).json()["id"])


async def session(client: AsyncClient, _mark: str) -> str:
    return str((await client.get("/auth/sessions")).json()["items"][0]["id"])


async def api_key(client: AsyncClient, mark: str) -> str:
    key = {"name": f"{mark} key", "scopes": ["users:self"]}
    return str((await client.post("/users/me/api-keys", json=key)).json()["id"])


OWNED_PARAMETERS = {"user_id": user, "session_id": session, "key_id": api_key}

UNOWNED_PARAMETERS = {"provider": "nobody", "identity_id": str(uuid4())}
"""Path parameters, with any value, that do not name an object of an account, or name one that
only a provider can create (which has separate tests)."""

PUBLIC_OPERATIONS = {
    "POST /users",
    "POST /auth/token",
    "POST /auth/email/verify",
    "POST /auth/password/forgot",
    "POST /auth/password/reset",
    "GET /auth/oidc/{provider}/login",
    "GET /auth/oidc/{provider}/callback",
    "GET /.well-known/jwks.json",
}
"""Operations that need no account, because they create one or sign in."""

REFUSED_OPERATIONS = {
    "GET /users",  # for administrators
    "PUT /users/me/password",
    "POST /auth/token",
    "POST /auth/email/verify",
    "POST /auth/password/forgot",
    "POST /auth/password/reset",
}
"""Operations that another account may not call, or whose responses hold no private data."""
