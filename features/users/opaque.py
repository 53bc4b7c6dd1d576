"""Tokens that mean nothing by themselves: a prefix that tells what was found when one leaks,
256 bits of chance, and a checksum, so that a mistyped one is refused without a query."""

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
    """Whether the value can be a token of this kind at all."""
    if not value.startswith(f"{prefix}_") or len(value) > MAX_LENGTH or not value.isascii():
        return False
    return value[-8:] == _checksum(value[:-8])


def digest(token: str) -> bytes:
    """What is kept of a token. It has too much chance in it to need a slow hash."""
    return hashlib.sha256(token.encode()).digest()


def _checksum(body: str) -> str:
    return f"{crc32(body.encode()):08x}"


def chance() -> str:
    """256 bits of it, for what must not be guessed and is not kept."""
    return secrets.token_urlsafe(32)
