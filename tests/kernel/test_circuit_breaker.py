"""A circuit breaker skips a service that has failed, and lets one call after another try it
again."""

import time

import pytest

from shared.circuit_breaker import CircuitBreaker


def test_one_call_at_a_time_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    circuit = CircuitBreaker(5.0)
    assert circuit.allow()
    assert circuit.record_failure(), "it was closed"
    assert not circuit.record_failure(), "it was open already"
    assert not circuit.allow()
    now = 5.0
    assert [circuit.allow() for _ in range(3)] == [True, False, False]
    now = 10.0
    assert circuit.allow()
    assert circuit.record_success(), "it was open"
    assert not circuit.record_success()
    assert all(circuit.allow() for _ in range(3))
