"""Authentication by API key, with a cache of `KNOWN_SECONDS` in front of the database."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlmodel import col, select

from features.users.access import Permissions
from features.users.opaque import API_KEY, digest, is_token
from features.users.tables import ApiKey, Role, User
from features.users.tokens import InvalidToken
from shared.auth import Principal
from shared.db import Database

KNOWN_SECONDS = 0.8
REMEMBERED = 10_000
USED_RESOLUTION = timedelta(minutes=1)  # how often `last_used_at` is written at most

FIND = (
    select(ApiKey, User.role)
    .join(User, col(User.id) == col(ApiKey.user_id))
    .where(col(User.is_active))
)


@dataclass(frozen=True, slots=True)
class KnownKey:
    id: UUID
    principal: Principal
    expires_at: datetime | None
    until: float


@dataclass
class KnownKeys:
    """A cache of valid API keys, by hash. An entry is used for `KNOWN_SECONDS`."""

    _known: dict[bytes, KnownKey] = field(default_factory=dict)

    async def find(self, database: Database, permissions: Permissions, key: str) -> KnownKey:
        """Returns the key's id, principal and expiry, from the cache or the database.

        Raises:
            InvalidToken: the key does not exist, has expired, or its account is not active.
        """
        if not is_token(key, API_KEY):
            raise InvalidToken
        hash_, now = digest(key), time.monotonic()
        known = self._known.get(hash_)
        if known is None or known.until <= now:
            known = await _find(database, permissions, hash_, until=now + KNOWN_SECONDS)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[hash_] = known
        if known.expires_at and known.expires_at <= datetime.now(UTC):
            raise InvalidToken
        return known


async def _find(
    database: Database, permissions: Permissions, hash_: bytes, *, until: float
) -> KnownKey:
    now = datetime.now(UTC)
    async with database.orm_transaction() as session:
        found = (await session.exec(FIND.where(col(ApiKey.hash) == hash_))).one_or_none()
        if found is None:
            raise InvalidToken
        key, role = found
        if key.last_used_at is None or key.last_used_at < now - USED_RESOLUTION:
            key.last_used_at = now
    principal = Principal(user_id=key.user_id, scopes=permissions.of(Role(role), key.scope))
    return KnownKey(key.id, principal, key.expires_at, until)
