"""Skips a model that fails, without letting a text that it always fails on stop the others."""

import time


class TextCircuitBreaker:
    """Closed, it allows every text. After one text has failed, only that text is skipped, because
    the text itself may be the cause. After two different texts have failed, it is open: all texts
    are skipped until `seconds` after the last failure."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failed: set[str] = set()
        self._open_until = 0.0

    def allow(self, text: str) -> bool:
        recent = time.monotonic() < self._open_until
        return not recent or (len(self._failed) < 2 and text not in self._failed)

    def record_success(self) -> None:
        self._failed.clear()

    def record_failure(self, text: str) -> None:
        self._failed = {*list(self._failed)[:1], text}
        self._open_until = time.monotonic() + self._seconds
