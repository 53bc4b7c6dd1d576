"""Real servers, as processes of their own: the API, and Redis."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
START_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Served:
    """A server that answers at `address`; what it printed is in `output` and `log`."""

    address: str
    process: subprocess.Popen[bytes]
    output: Path
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal, and returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """That of this process, with these settings and no others; `.env` is read in no test that
    does not say another `env`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("APP_")}
    given = {f"APP_{name.upper()}": value for name, value in settings.items()}
    return kept | {"APP_ENV": "test"} | given


@contextmanager
def serving(
    folder: Path, port: int, settings: Mapping[str, str], code: Path = ROOT, workers: int = 1
) -> Iterator[Served]:
    """Runs `python -m app serve`, from when it answers until the block ends.

    Its output goes to `folder`; the code is that of the repository, or of a copy.
    """
    address = f"http://127.0.0.1:{port}"
    output, log = folder / "output", folder / "log"
    with output.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", f"--port={port}", f"--workers={workers}"],
            cwd=code,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    served = Served(address, process, output, log)
    try:
        _wait_until_it_answers(served)
        yield served
    finally:
        if process.poll() is None:
            served.stop()


def _wait_until_it_answers(served: Served) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while served.process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            httpx.get(f"{served.address}/healthz")
            return
        time.sleep(0.05)
    raise AssertionError(f"the server does not answer: {served.log.read_text()}")


def children(pid: int) -> list[int]:
    """The processes that a process has started, and that have not ended."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


def free_port() -> int:
    """A port below those that systems give to whoever asks for any: nobody has it soon after."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass
class Redis:
    """A Redis that can be frozen, killed and started again, empty, at the same address."""

    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--save", "", "--dir", "/"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._answers():
            assert self.process
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16) == b"+PONG\r\n"
        return False

    def freeze(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Returns when it answers again: the kernel may wake it later."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)
        self._wait_until_it_answers()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
