"""`Idempotency-Key`: a request that is sent twice runs once, and gets the same response twice.

The key and the response are stored in the same transaction as the request's own writes, so either
all are committed or nothing is (IETF draft-ietf-httpapi-idempotency-key-header).
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import Response
from sqlalchemy import (
    ARRAY,
    BigInteger,
    LargeBinary,
    Text,
    any_,
    bindparam,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from shared.auth import principal_of
from shared.db import WriteSession, database_of, sessions
from shared.db.locks import advisory_lock
from shared.db.tables import delete_owned_rows, table_of
from shared.problems import Conflict, Unprocessable
from shared.tasks import Task
from shared.types import DatabaseText

LIFETIME = timedelta(hours=24)
BATCH_ROWS = 1_000
REPLAYED_HEADER = "Idempotency-Replayed"
STORED_HEADERS = ("content-type", "location", "etag")


class IdempotencyKey(SQLModel, table=True):
    """The stored response to one request of one account."""

    __tablename__ = "idempotency_keys"

    owner_id: UUID = Field(primary_key=True)
    key: str = Field(primary_key=True)
    fingerprint: str
    status: int
    headers: dict[str, str] = Field(sa_type=JSONB)
    body: bytes = Field(sa_type=LargeBinary)
    expires_at: datetime = Field(index=True)


IDEMPOTENCY_KEYS = table_of(IdempotencyKey)
IS_OWNERS = IDEMPOTENCY_KEYS.c.owner_id == bindparam("owner_id")
IS_THIS_KEY = (IS_OWNERS, IDEMPOTENCY_KEYS.c.key == bindparam("key"))
HAS_EXPIRED = IDEMPOTENCY_KEYS.c.expires_at < func.now()
TRY_LOCK_KEY = select(
    func.pg_try_advisory_xact_lock(bindparam("lock", type_=BigInteger)).label("locked")
)
# The COMMIT of a read-only transaction does not wait for a synchronous standby. FOR UPDATE writes
# to the WAL, so the COMMIT of a replay does wait, and the standby has then confirmed that of the
# first request too, which comes earlier in the WAL.
SELECT_KEY = select(IDEMPOTENCY_KEYS).where(*IS_THIS_KEY).with_for_update()
INSERT_KEY = insert(IDEMPOTENCY_KEYS)
DELETE_KEY = delete(IDEMPOTENCY_KEYS).where(*IS_THIS_KEY)
SELECT_EXPIRED = (
    select(IDEMPOTENCY_KEYS.c.owner_id)
    .where(HAS_EXPIRED)
    .order_by(IDEMPOTENCY_KEYS.c.expires_at)
    .limit(BATCH_ROWS)
)
# Two statements: in one, a planner with old statistics reads all keys of the owner for each that it
# deletes.
LOCK_EXPIRED = (
    select(IDEMPOTENCY_KEYS.c.key)
    .where(IS_OWNERS, HAS_EXPIRED)
    .limit(BATCH_ROWS)
    .with_for_update(skip_locked=True)
)
DELETE_KEYS = delete(IDEMPOTENCY_KEYS).where(
    IS_OWNERS, IDEMPOTENCY_KEYS.c.key == any_(bindparam("keys", type_=ARRAY(Text)))
)


class Replay(sessions.EndedByAnswer):
    """Raised for a request whose response is stored already; `replay` returns that response."""

    def __init__(self, response: Response) -> None:
        super().__init__("the response is stored already")
        self.response = response


async def replay(_request: Request, replayed: Exception) -> Response:
    """Answers with the stored response."""
    assert isinstance(replayed, Replay)
    return replayed.response


@dataclass(frozen=True)
class IdempotentRequest:
    """A request that may have an `Idempotency-Key`."""

    session: sessions.WriteSession
    owner_id: UUID
    key: str | None
    fingerprint: str

    async def lock_and_check(self) -> None:
        """Locks the key until the transaction ends, and checks that it has not been used before.

        Raises:
            Replay: this request has used it; the exception has the stored response.
            Conflict: another request with this key is in progress.
            Unprocessable: the key was used for a different request.
        """
        parameters = {"owner_id": self.owner_id, "key": self.key}
        lock = advisory_lock("shared.idempotency", self.owner_id, self.key)
        if not await self.session.fetch_value(TRY_LOCK_KEY, {"lock": lock}):
            raise Conflict("A request with this Idempotency-Key is still being worked on")
        stored = await self.session.fetch_one(SELECT_KEY, parameters)
        if stored is None:
            return
        if stored.expires_at <= datetime.now(UTC):
            await self.session.execute(DELETE_KEY, parameters)
            return
        if stored.fingerprint != self.fingerprint:
            raise Unprocessable("This Idempotency-Key was used for a different request")
        headers = {**stored.headers, REPLAYED_HEADER: "true"}
        raise Replay(Response(stored.body, stored.status, headers))

    async def store(self, response: Response) -> Response:
        """Stores the response with the key, to be committed with the work; returns the response."""
        if self.key is not None:
            stored = {
                "owner_id": self.owner_id,
                "key": self.key,
                "fingerprint": self.fingerprint,
                "status": response.status_code,
                "headers": {k: v for k, v in response.headers.items() if k in STORED_HEADERS},
                "body": bytes(response.body),
                "expires_at": datetime.now(UTC) + LIFETIME,
            }
            await self.session.execute(INSERT_KEY, stored)
        return response


async def _idempotency(
    request: Request,
    session: WriteSession,
    key: Annotated[
        DatabaseText | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            description="A unique value for this request. Sent again with the same value within 24"
            " hours, the request is not executed again: it gets the stored response.",
        ),
    ] = None,
) -> IdempotentRequest:
    owner_id = principal_of(request).user_id
    if key is None:
        return IdempotentRequest(session, owner_id, None, "")
    request_line = f"{request.method} {request.url.path}\n".encode()
    fingerprint = hashlib.sha256(request_line + await request.body()).hexdigest()
    idempotent = IdempotentRequest(session, owner_id, key, fingerprint)
    await idempotent.lock_and_check()
    return idempotent


Idempotency = Annotated[IdempotentRequest, Depends(_idempotency)]
"""Returns the stored response, if the request has one, without running the route.

The route returns `await idempotency.store(response)`. Among its parameters the principal comes
before this, which needs the account.
"""


async def delete_keys_of(session: sessions.WriteSession, owner_id: UUID) -> int:
    """Deletes a batch of the idempotency keys of an account; returns how many, 0 once none is
    left."""
    return await delete_owned_rows(session, IDEMPOTENCY_KEYS, owner_id)


async def _delete_expired(app: FastAPI) -> int:
    """Deletes a batch of expired keys, those of each owner in a transaction."""
    database = database_of(app)
    async with database.transaction() as session:  # of the primary: a replica may lag
        expired = await session.fetch(SELECT_EXPIRED)
    done = 0
    for owner_id in {row.owner_id for row in expired}:
        async with database.transaction() as session:
            locked = await session.fetch(LOCK_EXPIRED, {"owner_id": owner_id})
            keys = [row.key for row in locked]
            done += await session.execute(DELETE_KEYS, {"owner_id": owner_id, "keys": keys})
    return done


delete_expired_keys = Task(name="delete_expired_keys", run=_delete_expired, every=3600)
