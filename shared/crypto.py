"""Encryption and signatures, with a key for each purpose, derived from `APP_SECRET_KEY`."""

import base64
import hashlib

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from itsdangerous import URLSafeTimedSerializer


def derive(secret: str, purpose: str) -> bytes:
    """Derives a key of 32 bytes (HKDF, RFC 5869)."""
    return HKDF(SHA256(), 32, salt=None, info=purpose.encode()).derive(secret.encode())


def cipher(secret: str, purpose: str) -> Fernet:
    """Encrypts and authenticates: `seal.encrypt(bytes)`, `seal.decrypt(bytes, ttl=seconds)`."""
    return Fernet(base64.urlsafe_b64encode(derive(secret, purpose)))


def signer(secret: str, purpose: str) -> URLSafeTimedSerializer:
    """Signs readable values, with a timestamp: `dumps(value)`, `loads(text, max_age)`."""
    return URLSafeTimedSerializer(
        derive(secret, purpose),
        salt=purpose,
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )
