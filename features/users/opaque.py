"""Opaque tokens: refresh tokens and API keys.

A token is a prefix, which tells the kind of a leaked token, 256 bits of entropy, and a checksum, so
that a mistyped token is refused without a query.
"""

import hashlib
import secrets
from binascii import crc32

REFRESH_TOKEN = "tsr"
API_KEY = "tsk"
MAX_LENGTH = 100


def new_token(prefix: str) -> str:
    body = f"{prefix}_{secrets.token_urlsafe(32)}"
    return body + _checksum(body)


def is_token(value: str, prefix: str) -> bool:
    """Whether the value has the prefix and the checksum of such a token."""
    if not value.startswith(f"{prefix}_") or len(value) > MAX_LENGTH or not value.isascii():
        return False
    return value[-8:] == _checksum(value[:-8])


def digest(token: str) -> bytes:
    """Returns the hash that is stored. With 256 bits of entropy, a fast hash is enough."""
    return hashlib.sha256(token.encode()).digest()


def _checksum(body: str) -> str:
    return f"{crc32(body.encode()):08x}"


def chance() -> str:
    """Returns 256 bits of entropy, for secrets that are not stored."""
    return secrets.token_urlsafe(32)
