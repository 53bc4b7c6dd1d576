"""Opaque tokens: refresh tokens and API keys.

A token is a prefix, which tells the kind of a leaked token, 256 bits of entropy, and a checksum, so
that a mistyped token is refused without a query.
"""

import hashlib
import secrets
from binascii import crc32

REFRESH_TOKEN = "tsr"
API_KEY = "tsk"
MAX_OPAQUE_TOKEN_LENGTH = 100


def new_token(prefix: str) -> str:
    body = f"{prefix}_{random_token()}"
    return body + _checksum(body)


def is_token(value: str, prefix: str) -> bool:
    """Whether the value has the prefix and the checksum of such a token."""
    if len(value) > MAX_OPAQUE_TOKEN_LENGTH or not value.isascii():
        return False
    return value.startswith(f"{prefix}_") and value[-8:] == _checksum(value[:-8])


def digest(token: str) -> bytes:
    """Returns the hash that is stored. With 256 bits of entropy, a fast hash is enough."""
    return hashlib.sha256(token.encode()).digest()


def random_token() -> str:
    """Returns 256 bits of entropy."""
    return secrets.token_urlsafe(32)


def _checksum(body: str) -> str:
    return f"{crc32(body.encode()):08x}"
