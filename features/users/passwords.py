"""Passwords: hashed with argon2id, off the event loop, as many at a time as there are cores."""

import hashlib
import os

import anyio
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from zxcvbn.frequency_lists import FREQUENCY_LISTS

COMMON = frozenset(FREQUENCY_LISTS["passwords"])  # the 30,000 that leak most often


def is_common(password: str) -> bool:
    """Whether everybody's first guess includes this password (NIST SP 800-63B, 3.1.1.2)."""
    return password.lower() in COMMON


def fingerprint(password_hash: str | None) -> str:
    """Changes with the password: what is bound to it dies with it."""
    return hashlib.sha256((password_hash or "").encode()).hexdigest()[:32]


class Passwords:
    """Hashes and verifies. `cheap` is for tests, which sign in all the time."""

    def __init__(self, *, cheap: bool) -> None:
        hasher = (
            Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1) if cheap else Argon2Hasher()
        )
        self._hash = PasswordHash((hasher,))
        self._nobodys = self._hash.hash("nobody has this password")
        # Each takes 64 MiB and a core for a tenth of a second: more at once would be slower.
        self._at_once = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def hash(self, password: str) -> str:
        return await anyio.to_thread.run_sync(self._hash.hash, password, limiter=self._at_once)

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, str | None]:
        """Whether it matches, and a new hash where the old one is of a weaker kind.

        Without a hash nothing matches, and it takes the same time.
        """
        matches, renewed = await anyio.to_thread.run_sync(
            self._hash.verify_and_update,
            password,
            password_hash or self._nobodys,
            limiter=self._at_once,
        )
        return (matches, renewed) if password_hash else (False, None)
