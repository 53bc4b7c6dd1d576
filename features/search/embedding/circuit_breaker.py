"""Skips a model that fails, without letting a text or an owner that it fails on stop the others."""

import time
from uuid import UUID


class TextCircuitBreaker:
    """Closed, it allows every text. After one text has failed, only that text is skipped, because
    the text itself may be the cause. After two different texts of an owner have failed, all of that
    owner are skipped; after texts of two different owners, it is open: all texts are skipped. Each
    until `seconds` after the last failure."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failed: set[tuple[UUID, str]] = set()
        self._open_until = 0.0

    def allow(self, owner_id: UUID, text: str) -> bool:
        if time.monotonic() >= self._open_until:
            return True
        owners = {owner for owner, _ in self._failed}
        if len(owners) > 1:
            return False
        return owner_id not in owners or (
            len(self._failed) < 2 and (owner_id, text) not in self._failed
        )

    def record_success(self) -> None:
        self._failed.clear()

    def record_failure(self, owner_id: UUID, text: str) -> None:
        if time.monotonic() >= self._open_until:
            self._failed.clear()
        # One of another owner is kept rather than one of the same
        kept = sorted(self._failed, key=lambda failed: failed[0] == owner_id)[:1]
        self._failed = {*kept, (owner_id, text)}
        self._open_until = time.monotonic() + self._seconds
