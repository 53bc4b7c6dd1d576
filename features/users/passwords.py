"""Password hashing with argon2id, in worker threads, at most one per core."""

import hashlib
import os

import anyio
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from zxcvbn.frequency_lists import FREQUENCY_LISTS

COMMON = frozenset(FREQUENCY_LISTS["passwords"])  # the 30,000 most frequently leaked


def is_common(password: str) -> bool:
    """Whether the password is on the list of common ones (NIST SP 800-63B, 3.1.1.2)."""
    return password.lower() in COMMON


def fingerprint(password_hash: str | None) -> str:
    """Returns a short hash. A token bound to it becomes invalid when the password changes."""
    return hashlib.sha256((password_hash or "").encode()).hexdigest()[:32]


class Passwords:
    """Hashes and verifies passwords. `cheap` makes both fast, for tests."""

    def __init__(self, *, cheap: bool) -> None:
        hasher = (
            Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1) if cheap else Argon2Hasher()
        )
        self._hash = PasswordHash((hasher,))
        self._nobodys = self._hash.hash("nobody has this password")
        # A hash takes 64 MiB and one core for 0.1 s: more than one per core would be slower.
        self._at_once = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def hash(self, password: str) -> str:
        return await anyio.to_thread.run_sync(self._hash.hash, password, limiter=self._at_once)

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, str | None]:
        """Returns whether the password matches, and a new hash if the old one is weaker.

        If `password_hash` is None the result is False, after the same time.
        """
        matches, renewed = await anyio.to_thread.run_sync(
            self._hash.verify_and_update,
            password,
            password_hash or self._nobodys,
            limiter=self._at_once,
        )
        return (matches, renewed) if password_hash else (False, None)
