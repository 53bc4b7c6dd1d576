"""The keys that sign access tokens: rows that all processes share, and this process's copy.

A new key is published before it signs, so that a client that caches `/.well-known/jwks.json`
for as long as its `Cache-Control` allows never meets an unknown key. An old key verifies tokens
until the last token that it signed has expired; then a task deletes it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import orjson
import structlog
from cryptography.fernet import Fernet, InvalidToken
from joserfc.jwk import OKPKey
from sqlalchemy import delete, func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.revocation import CHANNEL
from features.users.tables import SigningKey
from features.users.tokens import ALGORITHM, LEEWAY_SECONDS, TokenReader, write_access_token
from shared.auth import Principal
from shared.db import Database
from shared.db.locks import advisory_lock
from shared.problems import Unavailable

PUBLISHED_BEFORE = timedelta(minutes=5)  # also the max-age of the JWKS
RELOAD_SECONDS = 1.0
LOCK_KEYS = select(func.pg_advisory_xact_lock(advisory_lock("users.signing_keys")))

log = structlog.get_logger(__name__)


@dataclass
class Keyring:
    """The signing keys, as this process last loaded them."""

    database: Database
    seal: Fernet
    issuer: str
    lifetime: timedelta
    ids: frozenset[str] = frozenset()
    _keys: list[tuple[datetime, OKPKey]] = field(default_factory=list)
    _public: Mapping[str, OKPKey] = field(default_factory=dict)
    _loaded: float = float("-inf")
    reader: TokenReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = TokenReader(self.issuer, self._public)

    async def load(self) -> None:
        """Loads the keys, and creates one if none of them can sign."""
        self._loaded = time.monotonic()
        async with self.database.orm_transaction() as session:
            rows = await _all(session)
            if self._signing(self._opened(rows)) is None:
                await add_key(session, self.seal, datetime.now(UTC))
                rows = await _all(session)
        self._keys = self._opened(rows)
        self._public = {row.id: OKPKey.import_key(row.public_jwk) for row in rows}
        self.reader = TokenReader(self.issuer, self._public)
        self.ids = frozenset(self._public)

    async def load_again(self) -> bool:
        """Loads the keys because a token names an unknown one.

        Returns False, without loading, within `RELOAD_SECONDS` of the last load.
        """
        if time.monotonic() - self._loaded < RELOAD_SECONDS:
            return False
        await self.load()
        return True

    async def sign(self, principal: Principal) -> str:
        """Returns a signed access token.

        Raises:
            Unavailable: the keys cannot be loaded.
        """
        key = self._signing(self._keys)
        if key is None:
            await self.load()
            key = self._signing(self._keys)
        if key is None:
            raise Unavailable("There is no key to sign with; please try again")
        lifetime = int(self.lifetime.total_seconds())
        return write_access_token(key, self.issuer, principal, lifetime)

    def published(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the public keys as a JWK set (RFC 7517)."""
        return {"keys": [key.as_dict(private=False) for key in self._public.values()]}

    def _signing(self, keys: list[tuple[datetime, OKPKey]]) -> OKPKey | None:
        """Returns the newest key that is active."""
        now = datetime.now(UTC)
        return next((key for active_at, key in reversed(keys) if active_at <= now), None)

    def _opened(self, rows: Sequence[SigningKey]) -> list[tuple[datetime, OKPKey]]:
        opened = []
        for row in rows:
            try:
                private = orjson.loads(self.seal.decrypt(row.sealed_private_jwk))
            except InvalidToken:  # encrypted under another APP_SECRET_KEY: it only verifies
                log.warning("signing_key_sealed_under_another_key", key_id=row.id)
            else:
                opened.append((row.active_at, OKPKey.import_key(private)))
        return opened


async def _all(session: AsyncSession) -> Sequence[SigningKey]:
    await session.exec(LOCK_KEYS)
    return (await session.exec(select(SigningKey).order_by(col(SigningKey.active_at)))).all()


async def add_key(session: AsyncSession, seal: Fernet, active_at: datetime) -> str:
    """Creates a key pair that signs from `active_at`, and returns its id (RFC 7638)."""
    parameters = {"use": "sig", "alg": ALGORITHM}
    key = OKPKey.generate_key("Ed25519", parameters=parameters, auto_kid=True)  # type: ignore[arg-type]
    assert key.kid
    sealed = seal.encrypt(orjson.dumps(key.as_dict(private=True)))
    public = key.as_dict(private=False)
    row = SigningKey(id=key.kid, public_jwk=public, sealed_private_jwk=sealed, active_at=active_at)
    session.add(row)
    await session.flush()
    await session.exec(select(func.pg_notify(CHANNEL, "")))
    return row.id


async def remove_keys(session: AsyncSession) -> None:
    """Deletes all keys, so that the tokens they signed are no longer valid."""
    await session.exec(delete(SigningKey))


async def remove_expired_keys(session: AsyncSession, lifetime: timedelta) -> None:
    """Deletes the keys whose last token has expired."""
    rows = await _all(session)
    spent = datetime.now(UTC) - lifetime - timedelta(seconds=2 * LEEWAY_SECONDS)
    for old, successor in pairwise(rows):
        if successor.active_at < spent:
            await session.delete(old)
