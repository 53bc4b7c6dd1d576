"""A process that is told to stop loses no request."""

import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from shared.settings import Settings
from tests.serving import Served, serving

WITHIN_SECONDS = 20.0
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def variables(settings: Settings, **others: str) -> dict[str, str]:
    needed = {"env": "test", "database_url": settings.database_url or ""}
    return needed | {"secret_key": settings.secret()} | others


def status(served: Served, path: str) -> int:
    """On a connection of its own; 0 where none is accepted."""
    try:
        return httpx.get(served.address + path, timeout=10).status_code
    except httpx.TransportError:
        return 0


def wait_for(served: Served, path: str, expected: int) -> None:
    deadline = time.monotonic() + WITHIN_SECONDS
    while (found := status(served, path)) != expected:
        assert time.monotonic() < deadline, f"{path} answers {found}, not {expected}"
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
def test_while_load_balancers_look_elsewhere_requests_are_answered(
    settings: Settings, tmp_path: Path, unused_tcp_port: int, workers: int
) -> None:
    started = variables(settings, shutdown_delay="3")
    with serving(tmp_path, unused_tcp_port, started, workers=workers) as served:
        assert status(served, "/readyz") == 200
        served.process.send_signal(signal.SIGTERM)
        wait_for(served, "/readyz", 503)
        assert status(served, "/healthz") == 200
        wait_for(served, "/healthz", 0)
        assert served.process.wait(WITHIN_SECONDS) == 0


def test_a_connection_that_was_accepted_is_heard(
    settings: Settings, tmp_path: Path, unused_tcp_port: int
) -> None:
    with (
        serving(tmp_path, unused_tcp_port, variables(settings)) as served,
        socket.create_connection(("127.0.0.1", unused_tcp_port), timeout=10) as connection,
    ):
        served.process.send_signal(signal.SIGTERM)
        wait_for(served, "/healthz", 0)
        connection.sendall(REQUEST)
        assert connection.recv(4096).startswith(b"HTTP/1.1 503")
