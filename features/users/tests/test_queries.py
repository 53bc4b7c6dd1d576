"""The maximum number of statements of each endpoint: the table in README.md."""

from pathlib import Path

from httpx import AsyncClient

from features.users.tests.conftest import EMAIL, MailedToken, by_password, by_refresh, tokens_of
from tests.kit import PASSWORD, SignUp, assert_query_budgets

README = Path(__file__).parents[1] / "README.md"


async def test_each_endpoint_keeps_its_budget_of_queries(
    client: AsyncClient,
    other_client: AsyncClient,
    admin: AsyncClient,
    anonymous: AsyncClient,
    sign_up: SignUp,
    mailed_token: MailedToken,
) -> None:
    await sign_up(EMAIL)
    refresh = tokens_of(await by_password(anonymous)).refresh
    third, fourth = await sign_up(), await sign_up()
    user = (await other_client.get("/users/me")).json()["id"]
    await by_password(client, (await client.get("/users/me")).json()["email"])
    (session, *_) = (await client.get("/auth/sessions")).json()["items"]
    new_key = {"name": "robot", "scopes": ["users:self"]}
    key = (await client.post("/users/me/api-keys", json=new_key)).json()["id"]
    verify = {"token": await mailed_token(EMAIL, "confirm")}
    await anonymous.post("/auth/password/forgot", json={"email": EMAIL})
    reset = {"token": await mailed_token(EMAIL, "reset"), "new_password": f"{PASSWORD} 2"}
    change = {"current_password": PASSWORD, "new_password": f"{PASSWORD} 3"}
    await assert_query_budgets(
        README,
        {
            "GET /.well-known/jwks.json": anonymous.get("/.well-known/jwks.json"),
            "POST /users": anonymous.post(
                "/users", json={"email": "eve@example.com", "password": PASSWORD}
            ),
            "POST /auth/token": by_password(anonymous),
            "POST /auth/token#refresh": by_refresh(anonymous, refresh),
            "POST /auth/email/verify": anonymous.post("/auth/email/verify", json=verify),
            "POST /auth/password/forgot": anonymous.post(
                "/auth/password/forgot", json={"email": EMAIL}
            ),
            "POST /auth/password/reset": anonymous.post("/auth/password/reset", json=reset),
            "GET /users/me": client.get("/users/me"),
            "PATCH /users/me": client.patch("/users/me", json={"name": "Ada"}),
            "POST /users/me/verification": client.post("/users/me/verification"),
            "GET /users/me/events": client.get("/users/me/events"),
            "GET /users/me/identities": client.get("/users/me/identities"),
            "GET /users/me/api-keys": client.get("/users/me/api-keys"),
            "POST /users/me/api-keys": client.post("/users/me/api-keys", json=new_key),
            "DELETE /users/me/api-keys/{key_id}": client.delete(f"/users/me/api-keys/{key}"),
            "GET /auth/sessions": client.get("/auth/sessions"),
            "DELETE /auth/sessions/{session_id}": client.delete(f"/auth/sessions/{session['id']}"),
            "PUT /users/me/password": third.put("/users/me/password", json=change),
            "DELETE /auth/sessions": fourth.delete("/auth/sessions"),
            "POST /auth/logout": (await sign_up()).post("/auth/logout"),
            "GET /users": admin.get("/users"),
            "GET /users/{user_id}": admin.get(f"/users/{user}"),
            "PATCH /users/{user_id}": admin.patch(f"/users/{user}", json={"name": "Eve"}),
            "DELETE /users/{user_id}": admin.delete(f"/users/{user}"),
            "DELETE /users/me": (await sign_up()).delete("/users/me"),
        },
    )
