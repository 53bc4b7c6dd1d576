"""The keys that sign access tokens: rows that all processes share, and this process's copy.

A new key is published before it signs, so that a client that caches `/.well-known/jwks.json`
for as long as its `Cache-Control` allows never meets an unknown key. An old key verifies tokens
until the last token that it signed has expired; then a task deletes it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from operator import itemgetter
from typing import Any

import orjson
import structlog
from asyncpg import Connection
from cryptography.fernet import Fernet, InvalidToken
from joserfc.jwk import OKPKey
from sqlalchemy import delete, func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.access_tokens.jwt import (
    ALGORITHM,
    LEEWAY_SECONDS,
    TokenReader,
    write_access_token,
)
from features.users.access_tokens.revocation_list import ACCESS_CHANNEL
from features.users.access_tokens.tables import SigningKey
from shared.auth import Principal
from shared.db import Database, write_session_of
from shared.db.locks import advisory_lock
from shared.problems import Unavailable

JWKS_MAX_AGE = timedelta(minutes=5)  # a new key is published as long before it signs
LOCK_KEYS = select(func.pg_advisory_xact_lock(advisory_lock("users.signing_keys")))

SELECT_KEYS = "SELECT id, public_jwk, sealed_private_jwk, active_at FROM signing_keys"
READ_TIMEOUT_SECONDS = 2.0

log = structlog.get_logger(__name__)


@dataclass
class Keyring:
    """The signing keys, as this process last read them: when it starts, and when a poll of the
    revocation list finds that there are others."""

    database: Database
    encryption: Fernet
    issuer: str
    lifetime: timedelta
    ids: frozenset[str] = frozenset()
    _private_keys: list[tuple[datetime, OKPKey]] = field(default_factory=list)
    _public_keys: Mapping[str, OKPKey] = field(default_factory=dict)
    reader: TokenReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = TokenReader(self.issuer, self._public_keys)

    async def load(self) -> None:
        """Loads the keys, and creates one if none of them can sign.

        It waits for who adds or deletes keys, so requests that only verify do not call it.
        """
        async with self.database.orm_transaction() as session:
            rows = await _lock_keys(session)
            if self._active_key(self._decrypt(rows)) is None:
                await add_key(session, self.encryption, datetime.now(UTC))
                rows = await _lock_keys(session)
        self._use(rows)

    async def read(self, connection: "Connection[Any]", ids: Sequence[str]) -> None:
        """Reads the keys, unless it has those with these ids. It takes no lock, and no connection
        of a pool."""
        if self.ids == set(ids):
            return
        found = await connection.fetch(SELECT_KEYS, timeout=READ_TIMEOUT_SECONDS)
        self._use(
            [
                SigningKey(
                    id=row["id"],
                    public_jwk=orjson.loads(row["public_jwk"]),
                    encrypted_private_jwk=row["sealed_private_jwk"],
                    active_at=row["active_at"],
                )
                for row in sorted(found, key=itemgetter("active_at"))
            ]
        )

    def _use(self, rows: Sequence[SigningKey]) -> None:
        self._private_keys = self._decrypt(rows)
        self._public_keys = {row.id: OKPKey.import_key(row.public_jwk) for row in rows}
        self.reader = TokenReader(self.issuer, self._public_keys)
        self.ids = frozenset(self._public_keys)

    async def sign(self, principal: Principal) -> str:
        """Returns a signed access token.

        Raises:
            Unavailable: the keys cannot be loaded.
        """
        key = self._active_key(self._private_keys)
        if key is None:
            await self.load()
            key = self._active_key(self._private_keys)
        if key is None:
            raise Unavailable("There is no key to sign with; please try again")
        lifetime = int(self.lifetime.total_seconds())
        return write_access_token(key, self.issuer, principal, lifetime)

    def published(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the public keys as a JWK set (RFC 7517)."""
        return {"keys": [key.as_dict(private=False) for key in self._public_keys.values()]}

    def _active_key(self, keys: list[tuple[datetime, OKPKey]]) -> OKPKey | None:
        """Returns the newest key that is active."""
        now = datetime.now(UTC)
        return next((key for active_at, key in reversed(keys) if active_at <= now), None)

    def _decrypt(self, rows: Sequence[SigningKey]) -> list[tuple[datetime, OKPKey]]:
        keys = []
        for row in rows:
            try:
                private_jwk = orjson.loads(self.encryption.decrypt(row.encrypted_private_jwk))
            except InvalidToken:  # encrypted under another APP_SECRET_KEY: it only verifies
                log.warning("signing_key_sealed_under_another_key", key_id=row.id)
            else:
                keys.append((row.active_at, OKPKey.import_key(private_jwk)))
        return keys


async def _lock_keys(session: AsyncSession) -> Sequence[SigningKey]:
    """Returns all keys, oldest first; no other process adds or deletes one in the meantime."""
    await session.exec(LOCK_KEYS)
    return (await session.exec(select(SigningKey).order_by(col(SigningKey.active_at)))).all()


async def add_key(session: AsyncSession, encryption: Fernet, active_at: datetime) -> str:
    """Creates a key pair that signs from `active_at`, and returns its id (RFC 7638)."""
    parameters = {"use": "sig", "alg": ALGORITHM}
    key = OKPKey.generate_key("Ed25519", parameters=parameters, auto_kid=True)  # type: ignore[arg-type]
    assert key.kid
    row = SigningKey(
        id=key.kid,
        public_jwk=key.as_dict(private=False),
        encrypted_private_jwk=encryption.encrypt(orjson.dumps(key.as_dict(private=True))),
        active_at=active_at,
    )
    session.add(row)
    await session.flush()
    write_session_of(session).notify(ACCESS_CHANNEL)
    return row.id


async def rotate_signing_key(
    session: AsyncSession, encryption: Fernet, *, revoke: bool
) -> tuple[str, datetime]:
    """Adds a key that signs in `JWKS_MAX_AGE`; returns its id, and from when it signs.

    With `revoke` it signs at once, and all other keys are deleted: no token that they signed is
    valid any longer.
    """
    active_at = datetime.now(UTC)
    if revoke:
        await session.exec(delete(SigningKey))
    else:
        active_at += JWKS_MAX_AGE
    return await add_key(session, encryption, active_at), active_at


async def remove_expired_keys(session: AsyncSession, lifetime: timedelta) -> None:
    """Deletes the keys whose last token has expired."""
    rows = await _lock_keys(session)
    superseded_before = datetime.now(UTC) - lifetime - timedelta(seconds=2 * LEEWAY_SECONDS)
    for old, successor in pairwise(rows):
        if successor.active_at < superseded_before:
            await session.delete(old)
