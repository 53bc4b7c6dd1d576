"""Access tokens are short-lived JSON Web Tokens (RFC 7519, RFC 9068), signed with Ed25519 keys
(RFC 9864) whose public keys are published."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from features.users.permissions import format_scope, parse_scope
from shared.auth import Principal
from shared.problems import Unauthorized

ALGORITHM = "Ed25519"
TYPE = "at+jwt"
AUDIENCE = "tessera"
LEEWAY_SECONDS = 5
MAX_JWT_LENGTH = 4_096
MAX_CACHED_TOKENS = 4_096


class InvalidCredential(Unauthorized):
    """An access token or API key is malformed, altered, expired, revoked, or for others."""

    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer error="invalid_token"'}

    def __init__(self) -> None:
        super().__init__("Invalid token")


class UnknownSigningKey(InvalidCredential):
    """The token names a key that is not loaded yet, was deleted, or never existed."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    principal: Principal
    expires_at: int

    @property
    def has_expired(self) -> bool:
        return self.expires_at <= time.time() - LEEWAY_SECONDS


class TokenReader:
    """Verifies access tokens with a set of public keys, and caches the valid ones."""

    def __init__(self, issuer: str, keys: Mapping[str, OKPKey]) -> None:
        self._keys = keys
        self._cache: dict[str, AccessToken] = {}
        self._claims = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": AUDIENCE},
            sub={"essential": True},
            sid={"essential": True},
            iat={"essential": True},
            exp={"essential": True},
            jti={"essential": True},
            scope={"essential": True, "allow_blank": True},
        )

    def read(self, token: str) -> Principal:
        """Returns the principal of a token.

        Raises:
            UnknownSigningKey: the token names a key that is not in this set; it may be valid.
            InvalidCredential: the token is not valid.
        """
        known = self._cache.get(token)
        if known is None:
            known = self._verify(token)
            if len(self._cache) >= MAX_CACHED_TOKENS:
                self._cache.clear()
            self._cache[token] = known
        if known.has_expired:
            raise InvalidCredential
        return known.principal

    def find(self, token: str) -> Principal | None:
        """Returns the principal of a token that has been read and has not expired."""
        known = self._cache.get(token)
        return known.principal if known and not known.has_expired else None

    def _verify(self, token: str) -> AccessToken:
        if len(token) > MAX_JWT_LENGTH:
            raise InvalidCredential
        try:
            decoded = jwt.decode(token, self._key, algorithms=[ALGORITHM])
            if decoded.header.get("typ") != TYPE:
                raise InvalidCredential
            self._claims.validate(decoded.claims)
            return _access_token(decoded.claims)
        except (JoseError, ValueError, KeyError, TypeError, AttributeError):
            raise InvalidCredential from None

    def _key(self, token: Any) -> OKPKey:
        """Returns the key that `kid` names. Keys in the header itself are ignored."""
        key_id = token.headers().get("kid")
        if not isinstance(key_id, str) or key_id not in self._keys:
            raise UnknownSigningKey
        return self._keys[key_id]


def _access_token(claims: Mapping[str, Any]) -> AccessToken:
    principal = Principal(
        user_id=UUID(claims["sub"]),
        scopes=parse_scope(claims["scope"]),
        session_id=UUID(claims["sid"]),
    )
    return AccessToken(principal, claims["exp"])


def write_access_token(key: OKPKey, issuer: str, principal: Principal, lifetime: int) -> str:
    """Returns a signed token that expires in `lifetime` seconds."""
    now = int(time.time())
    claims = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": str(principal.user_id),
        "sid": str(principal.session_id),
        "iat": now,
        "exp": now + lifetime,
        "jti": str(uuid4()),
        "scope": format_scope(principal.scopes),
    }
    header = {"alg": ALGORITHM, "typ": TYPE, "kid": key.kid}
    return jwt.encode(header, claims, key, algorithms=[ALGORITHM])
