"""Access tokens: JSON Web Tokens (RFC 7519, RFC 9068) that live for minutes."""

import secrets
import time
from collections.abc import Iterable
from uuid import UUID

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from shared.auth import Principal
from shared.errors import Unauthorized

ALGORITHM = "HS256"
ISSUER = "tessera"
AUDIENCE = "tessera"
LIFETIME_SECONDS = 15 * 60
LEEWAY_SECONDS = 5

_claims = jwt.JWTClaimsRegistry(
    leeway=LEEWAY_SECONDS,
    iss={"essential": True, "value": ISSUER},
    aud={"essential": True, "value": AUDIENCE},
    sub={"essential": True},
    exp={"essential": True},
    iat={"essential": True},
    jti={"essential": True},
)


def issue_access_token(secret: str, user_id: UUID, scopes: Iterable[str]) -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(user_id),
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
        "jti": secrets.token_urlsafe(16),
        "scope": " ".join(sorted(scopes)),
    }
    return jwt.encode({"alg": ALGORITHM, "typ": "at+jwt"}, claims, OctKey.import_key(secret))


def read_access_token(secret: str, token: str) -> Principal:
    """
    Raises:
        Unauthorized: the token is malformed, tampered with, expired or meant for others.
    """
    try:
        decoded = jwt.decode(token, OctKey.import_key(secret), algorithms=[ALGORITHM])
        _claims.validate(decoded.claims)
        return Principal(UUID(decoded.claims["sub"]), frozenset(decoded.claims["scope"].split()))
    except (JoseError, ValueError, KeyError, AttributeError):
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise Unauthorized("Invalid token", headers=challenge) from None
