"""A circuit breaker (Nygard, Release It!): skips a dependency that has just failed."""

import time


class CircuitBreaker:
    """Opens after a failure, and then lets one call every `seconds` try the dependency again.

    So while a dependency is away, not every request waits for its timeout.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._open = False
        self._next_try = 0.0

    def allow(self) -> bool:
        """Returns whether to call the dependency now."""
        if not self._open:
            return True
        now = time.monotonic()
        allowed = now >= self._next_try
        if allowed:
            self._next_try = now + self.seconds
        return allowed

    def record_success(self) -> bool:
        """Closes the circuit; returns whether it was open."""
        was_open, self._open = self._open, False
        return was_open

    def record_failure(self) -> bool:
        """Opens the circuit; returns whether it was closed: of many failures, log the first."""
        was_open, self._open = self._open, True
        self._next_try = time.monotonic() + self.seconds
        return not was_open
