"""A minimal server with the same answers: Starlette, an asyncpg pool, orjson; verifies the token.
A write runs the subscribers of items, as the application does.

Started by `tests.benchmarks.endpoints`.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

import anyio
import asyncpg
import orjson
from joserfc.jwk import OKPKey
from pwdlib import PasswordHash
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from app.discovery import find_features, subscribers_of
from features.items import item_changes
from features.users.access_tokens.jwt import TokenReader, write_access_token
from shared.auth import Principal
from shared.db import WriteSession
from shared.db.tables import uuid7
from tests.declarations import declared

COLUMNS = "id, external_id, title, description, price, created_at, updated_at"
GET = f"SELECT {COLUMNS} FROM items WHERE id = $1 AND owner_id = $2"
LIST = f"SELECT {COLUMNS} FROM items WHERE owner_id = $1 ORDER BY created_at DESC, id DESC LIMIT 21"
COUNT = "SELECT count(*) FROM items WHERE owner_id = $1"
CREATE = (
    f"INSERT INTO items (id, owner_id, title, price) VALUES ($1, $2, $3, $4) RETURNING {COLUMNS}"
)
EXPORT = f"SELECT {COLUMNS} FROM items WHERE owner_id = $1 ORDER BY created_at, id"
LOCK = f"SELECT {COLUMNS} FROM items WHERE id = $1 AND owner_id = $2 FOR UPDATE"
UPDATE = f"""
UPDATE items SET price = $3, updated_at = clock_timestamp()
WHERE id = $1 AND owner_id = $2 RETURNING {COLUMNS}
"""

PASSWORD_HASH = "SELECT id, password_hash FROM users WHERE email = $1"
SIGN_IN = """
INSERT INTO sessions (id, user_id, address, user_agent, expires_at)
VALUES ($1, $2, '', '', now() + interval '30 days')
"""

OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
Handler = Callable[[Request, Principal], Awaitable[Response]]
pool: "asyncpg.Pool[Any]"
reader: TokenReader
hasher = PasswordHash.recommended()
subscribers = subscribers_of(find_features())
cores = anyio.CapacityLimiter(os.cpu_count() or 1)
signing_key = OKPKey.generate_key("Ed25519", {"kid": "bare"})


def signed_in(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        token = request.headers["authorization"].removeprefix("Bearer ")
        return await handler(request, reader.read(token))

    return endpoint


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "price": float(row["price"])}


def tag(row: Mapping[str, Any]) -> str:
    return f'"{int(row["updated_at"].timestamp() * 1_000_000):x}"'


def answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    content = orjson.dumps(body, str, orjson.OPT_UTC_Z)  # asyncpg returns its own UUID type
    return Response(content, status, headers, media_type="application/json")


async def publish(
    connection: Any, owner_id: UUID, ids: Sequence[UUID], fields: Collection[str] | None = None
) -> None:
    """Runs the subscribers of items in the transaction, as the application does."""
    session = WriteSession(connection, no_orm, subscribers)
    await item_changes.updated(session, owner_id, ids, fields)


def no_orm() -> NoReturn:
    raise AssertionError("no subscriber of items uses the ORM")


async def token(request: Request) -> Response:
    form = await request.form()
    user = await pool.fetchrow(PASSWORD_HASH, form["username"])
    assert user
    given, kept = str(form["password"]), user["password_hash"]
    assert await anyio.to_thread.run_sync(hasher.verify, given, kept, limiter=cores)
    principal = Principal(user["id"], frozenset({"items:read"}), uuid7())
    await pool.execute(SIGN_IN, principal.session_id, principal.user_id)
    access = write_access_token(signing_key, "http://127.0.0.1:8000", principal, 900)
    return answer({"access_token": access, "token_type": "bearer", "expires_in": 900})


async def get(request: Request, principal: Principal) -> Response:
    row = await pool.fetchrow(GET, UUID(request.path_params["id"]), principal.user_id)
    if row is None:
        return answer({"detail": "not found"}, 404)
    if request.headers.get("if-none-match") == tag(row):
        return Response(status_code=304, headers={"ETag": tag(row)})
    return answer(shown(row), headers={"ETag": tag(row)})


async def list_(request: Request, principal: Principal) -> Response:
    async with pool.acquire() as connection:
        rows = await connection.fetch(LIST, principal.user_id)
        total = None
        if request.query_params.get("total") != "false":
            total = await connection.fetchval(COUNT, principal.user_id)
    items = [shown(row) for row in rows[:20]]
    return answer({"items": items, "total": total, "page": 1, "page_size": 20})


async def create(request: Request, principal: Principal) -> Response:
    body = orjson.loads(await request.body())
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(
            CREATE, uuid7(), principal.user_id, body["title"], Decimal(str(body["price"]))
        )
        assert row
        await publish(connection, principal.user_id, [row["id"]])
    headers = {"ETag": tag(row), "Location": f"/items/{row['id']}"}
    return answer(shown(row), 201, headers)


async def export(request: Request, principal: Principal) -> Response:
    async def lines() -> AsyncIterator[bytes]:
        async with pool.acquire() as connection, connection.transaction(readonly=True):
            cursor = await connection.cursor(EXPORT, principal.user_id)
            while rows := await cursor.fetch(1_000):
                yield b"".join(orjson.dumps(shown(row), str, OPTIONS) for row in rows)

    return StreamingResponse(lines(), media_type="application/jsonl")


async def update(request: Request, principal: Principal) -> Response:
    item_id, body = UUID(request.path_params["id"]), orjson.loads(await request.body())
    async with pool.acquire() as connection, connection.transaction():
        await connection.fetchrow(LOCK, item_id, principal.user_id)
        price = Decimal(str(body["price"]))
        row = await connection.fetchrow(UPDATE, item_id, principal.user_id, price)
        assert row
        await publish(connection, principal.user_id, [item_id], body)
    return answer(shown(row), headers={"ETag": tag(row)})


async def alive(_request: Request) -> Response:
    return answer({"status": "ok"})


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    global pool, reader  # for a minimal server
    async with asyncpg.create_pool(os.environ["APP_DATABASE_URL"], min_size=10) as pool:
        keys = await pool.fetch("SELECT id, public_jwk FROM signing_keys")
        public = {row["id"]: OKPKey.import_key(orjson.loads(row["public_jwk"])) for row in keys}
        reader = TokenReader("http://127.0.0.1:8000", public)
        yield


app = Starlette(
    routes=[
        Route("/healthz", alive),
        Route("/auth/token", token, methods=["POST"]),
        Route("/items", signed_in(list_)),
        Route("/items", signed_in(create), methods=["POST"]),
        Route("/items/export", signed_in(export)),
        Route("/items/{id}", signed_in(get)),
        Route("/items/{id}", signed_in(update), methods=["PATCH"]),
        *(
            Route(path, signed_in(handler))
            for path, handler in declared("bare", "HANDLERS").items()
        ),
    ],
    lifespan=lifespan,
)
