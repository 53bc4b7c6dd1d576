"""Authentication by API key, with a cache of `CACHE_SECONDS` in front of the database."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlmodel import col, select

from features.users.access_tokens.jwt import InvalidCredential
from features.users.accounts.tables import Role, User
from features.users.api_keys.tables import ApiKey
from features.users.opaque_tokens import API_KEY, digest, is_token
from features.users.permissions import Permissions
from shared.auth import Principal
from shared.db import Database

CACHE_SECONDS = 0.8
MAX_CACHED_KEYS = 10_000
LAST_USED_RESOLUTION = timedelta(minutes=1)  # how often `last_used_at` is written at most

SELECT_API_KEY = (
    select(ApiKey, User.role)
    .join(User, col(User.id) == col(ApiKey.user_id))
    .where(col(User.is_active))
)


@dataclass(frozen=True, slots=True)
class CachedApiKey:
    principal: Principal
    expires_at: datetime | None
    cached_until: float

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


@dataclass
class ApiKeyCache:
    """A cache of valid API keys, by hash. An entry is used for `CACHE_SECONDS`."""

    _keys: dict[bytes, CachedApiKey] = field(default_factory=dict)

    def find(self, key: str) -> CachedApiKey | None:
        """Returns the key's entry in the cache, if it may still be used."""
        cached = self._keys.get(digest(key))
        return cached if cached and time.monotonic() < cached.cached_until else None

    async def get(self, database: Database, permissions: Permissions, key: str) -> CachedApiKey:
        """Returns the key's principal and expiry, from the cache or the database.

        Raises:
            InvalidCredential: the key does not exist, has expired, or its account is not active.
        """
        if not is_token(key, API_KEY):
            raise InvalidCredential
        cached = self.find(key)
        if cached is None:
            hash_, until = digest(key), time.monotonic() + CACHE_SECONDS
            cached = await _select(database, permissions, hash_, cached_until=until)
            if len(self._keys) >= MAX_CACHED_KEYS:
                self._keys.clear()
            self._keys[hash_] = cached
        if cached.has_expired:
            raise InvalidCredential
        return cached


async def _select(
    database: Database, permissions: Permissions, hash_: bytes, *, cached_until: float
) -> CachedApiKey:
    now = datetime.now(UTC)
    async with database.orm_transaction() as session:
        row = (await session.exec(SELECT_API_KEY.where(col(ApiKey.hash) == hash_))).one_or_none()
        if row is None:
            raise InvalidCredential
        key, role = row
        if key.last_used_at is None or key.last_used_at < now - LAST_USED_RESOLUTION:
            key.last_used_at = now
    scopes = permissions.of(Role(role), key.scope)
    principal = Principal(key.user_id, scopes, api_key_id=key.id)
    return CachedApiKey(principal, key.expires_at, cached_until)
