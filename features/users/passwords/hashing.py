"""Password hashing with argon2id, in worker threads, at most one per core."""

import hashlib
import os

import anyio
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from zxcvbn.frequency_lists import FREQUENCY_LISTS

COMMON_PASSWORDS = frozenset(FREQUENCY_LISTS["passwords"])  # the 30,000 most frequently leaked


def is_common(password: str) -> bool:
    """Whether the password is on the list of common ones (NIST SP 800-63B, 3.1.1.2)."""
    return password.lower() in COMMON_PASSWORDS


def fingerprint(password_hash: str | None) -> str:
    """Returns a short hash. A token bound to it becomes invalid when the password changes."""
    return hashlib.sha256((password_hash or "").encode()).hexdigest()[:32]


class PasswordHasher:
    """Hashes and verifies passwords. `cheap` makes both fast, for tests."""

    def __init__(self, *, cheap: bool) -> None:
        argon2 = (
            Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1) if cheap else Argon2Hasher()
        )
        self._hasher = PasswordHash((argon2,))
        self._dummy_hash = self._hasher.hash("a password that no account has")
        # A hash takes 64 MiB and one core for 0.1 s: more than one per core would be slower.
        self._limiter = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def hash(self, password: str) -> str:
        return await anyio.to_thread.run_sync(self._hasher.hash, password, limiter=self._limiter)

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, str | None]:
        """Returns whether the password matches, and a new hash if the old one is weaker.

        If `password_hash` is None the result is False, after the same time.
        """
        matches, new_hash = await anyio.to_thread.run_sync(
            self._hasher.verify_and_update,
            password,
            password_hash or self._dummy_hash,
            limiter=self._limiter,
        )
        return (matches, new_hash) if password_hash else (False, None)
