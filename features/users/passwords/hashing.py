"""Password hashing with argon2id, in worker threads, at most one per core, and a short queue."""

import hashlib
import os
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple
from uuid import UUID

import anyio
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from shared.slots import Slots, current_holder

QUEUE_PER_CORE = 16  # a hash takes a core for 0.1 s: no request waits for longer than 2 s
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

COMMON_PASSWORDS = frozenset(FREQUENCY_LISTS["passwords"])  # the 30,000 most frequently leaked


def is_common(password: str) -> bool:
    """Whether the password is on the list of common ones (NIST SP 800-63B, 3.1.1.2)."""
    return password.lower() in COMMON_PASSWORDS


def fingerprint(password_hash: str | None, access_end: UUID | None) -> str:
    """Returns a short hash. A token bound to it becomes invalid when the password changes, or when
    the access of all accounts is ended."""
    return hashlib.sha256(f"{password_hash or ''} {access_end}".encode()).hexdigest()[:32]


class PasswordHasher:
    """Hashes and verifies passwords. `cheap` makes both fast, for tests.

    Raises:
        TooManyRequests: the account or the network has its share of the queue already.
        Unavailable: the queue is full.
    """

    def __init__(self, *, cheap: bool) -> None:
        cores = os.cpu_count() or 1
        argon2 = (
            Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1) if cheap else Argon2Hasher()
        )
        self._hasher = PasswordHash((argon2,))
        self._dummy_hash = self._hasher.hash("a password that no account has")
        # A hash takes 64 MiB and one core for 0.1 s: more than one per core would be slower.
        self._limiter = anyio.CapacityLimiter(cores)
        self._slots = Slots("password_hashing", QUEUE_PER_CORE * cores)

    def check_queue(self) -> None:
        """Raises what `verify` would now, for a handler that has queries to run before."""
        self._slots.take(current_holder.get()).release()

    async def hash(self, password: str) -> str:
        return await self._run(self._hasher.hash, password)

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, str | None]:
        """Returns whether the password matches, and a new hash if the old one is weaker.

        If `password_hash` is None the result is False, after the same time.
        """
        matches, new_hash = await self._run(
            self._hasher.verify_and_update, password, password_hash or self._dummy_hash
        )
        return (matches, new_hash) if password_hash else (False, None)

    async def _run(
        self, function: Callable[[*Arguments], Result], *arguments: *Arguments
    ) -> Result:
        slot = self._slots.take(current_holder.get())
        try:
            return await anyio.to_thread.run_sync(function, *arguments, limiter=self._limiter)
        finally:
            slot.release()
