"""`Idempotency-Key`: a request that is sent twice runs once, and gets the same response twice.

The key is stored with the response in the transaction of the work itself, so neither can exist
without the other (IETF draft-ietf-httpapi-idempotency-key-header).
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import Response
from sqlalchemy import BigInteger, LargeBinary, bindparam, delete, func, insert, select, tuple_
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from shared.auth import Principal
from shared.db import WriteSession, database_of
from shared.db.locks import advisory_lock
from shared.db.tables import table_of, uuid7
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

    user_id: UUID = Field(default_factory=uuid7, primary_key=True)
    key: str = Field(primary_key=True)
    fingerprint: str
    status: int
    headers: dict[str, str] = Field(sa_type=JSONB)
    body: bytes = Field(sa_type=LargeBinary)
    expires_at: datetime = Field(index=True)


IDEMPOTENCY_KEYS = table_of(IdempotencyKey)
IS_THIS_KEY = (
    IDEMPOTENCY_KEYS.c.user_id == bindparam("user_id"),
    IDEMPOTENCY_KEYS.c.key == bindparam("key"),
)
TRY_LOCK_KEY = select(
    func.pg_try_advisory_xact_lock(bindparam("lock", type_=BigInteger)).label("locked")
)
SELECT_KEY = select(IDEMPOTENCY_KEYS).where(*IS_THIS_KEY)
INSERT_KEY = insert(IDEMPOTENCY_KEYS)
DELETE_KEY = delete(IDEMPOTENCY_KEYS).where(*IS_THIS_KEY)
SELECT_EXPIRED = (
    select(IDEMPOTENCY_KEYS.c.user_id, IDEMPOTENCY_KEYS.c.key)
    .where(IDEMPOTENCY_KEYS.c.expires_at < func.now())
    .limit(BATCH_ROWS)
)
DELETE_EXPIRED = (
    delete(IDEMPOTENCY_KEYS)
    .where(
        tuple_(IDEMPOTENCY_KEYS.c.user_id, IDEMPOTENCY_KEYS.c.key).in_(
            SELECT_EXPIRED.with_for_update(skip_locked=True)
        )
    )
    .returning(IDEMPOTENCY_KEYS.c.key)
)


@dataclass(frozen=True)
class Idempotency:
    """The idempotency key of a request, if it has one.

    A router calls `replay` first, and passes its response to `keep` last:

        if answer := await idempotency.replay(principal):
            return answer
        …
        return await idempotency.keep(principal, answer)
    """

    session: WriteSession
    key: str | None
    fingerprint: str

    async def replay(self, principal: Principal) -> Response | None:
        """Returns the stored response of this key, or None.

        Raises:
            Conflict: another request with this key is in progress.
            Unprocessable: the key was used for a different request.
        """
        if self.key is None:
            return None
        this = {"user_id": principal.user_id, "key": self.key}
        lock = {"lock": advisory_lock("shared.idempotency", principal.user_id, self.key)}
        [taken] = await self.session.fetch(TRY_LOCK_KEY, lock)
        if not taken.locked:
            raise Conflict("A request with this Idempotency-Key is still being worked on")
        kept = await self.session.fetch_one(SELECT_KEY, this)
        if kept is None:
            return None
        if kept.expires_at <= datetime.now(UTC):
            await self.session.execute(DELETE_KEY, this)
            return None
        if kept.fingerprint != self.fingerprint:
            raise Unprocessable("This Idempotency-Key was used for a different request")
        return Response(kept.body, kept.status, {**kept.headers, REPLAYED_HEADER: "true"})

    async def keep(self, principal: Principal, answer: Response) -> Response:
        """Stores the response with the key, to be committed with the work; returns the response."""
        if self.key is not None:
            kept = {
                "user_id": principal.user_id,
                "key": self.key,
                "fingerprint": self.fingerprint,
                "status": answer.status_code,
                "headers": {k: v for k, v in answer.headers.items() if k in STORED_HEADERS},
                "body": bytes(answer.body),
                "expires_at": datetime.now(UTC) + LIFETIME,
            }
            await self.session.execute(INSERT_KEY, kept)
        return answer


async def _idempotency(
    request: Request,
    session: WriteSession,
    key: Annotated[
        DatabaseText | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            description="A unique value for this request: sent again within 24 hours, it is"
            " answered again, and not done again.",
        ),
    ] = None,
) -> Idempotency:
    request_line = f"{request.method} {request.url.path}\n".encode()
    fingerprint = hashlib.sha256(request_line + await request.body()).hexdigest() if key else ""
    return Idempotency(session, key, fingerprint)


IdempotencyDep = Annotated[Idempotency, Depends(_idempotency)]


async def _delete_expired(app: FastAPI) -> int:
    async with database_of(app).transaction() as session:
        return len(await session.fetch(DELETE_EXPIRED))


delete_expired_keys = Task(name="delete_expired_keys", run=_delete_expired, every=3600)
