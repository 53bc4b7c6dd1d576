"""Opaque tokens: refresh tokens and API keys.

A token is a prefix, which tells the kind of a leaked token, the id of its family if it has one, 256
bits of entropy, and a checksum, so that a mistyped token is refused without a query.
"""

import hashlib
import re
import secrets
from binascii import crc32
from uuid import UUID

REFRESH_TOKEN = "tsr"
API_KEY = "tsk"
MAX_OPAQUE_TOKEN_LENGTH = 100


def new_token(prefix: str, family: UUID | None = None) -> str:
    body = f"{prefix}_{family.hex if family else ''}{random_token()}"
    return body + _checksum(body)


def is_token(value: str, prefix: str) -> bool:
    """Whether the value has the prefix and the checksum of such a token."""
    if len(value) > MAX_OPAQUE_TOKEN_LENGTH or not value.isascii():
        return False
    return value.startswith(f"{prefix}_") and value[-8:] == _checksum(value[:-8])


def family_of(token: str) -> UUID | None:
    """Returns the family that a token names, if it names one."""
    _, _, body = token.partition("_")
    return UUID(body[:32]) if re.match("[0-9a-f]{32}", body) else None


def digest(token: str) -> bytes:
    """Returns the hash that is stored. With 256 bits of entropy, a fast hash is enough."""
    return hashlib.sha256(token.encode()).digest()


def random_token() -> str:
    """Returns 256 bits of entropy."""
    return secrets.token_urlsafe(32)


def _checksum(body: str) -> str:
    return f"{crc32(body.encode()):08x}"
