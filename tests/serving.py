"""The API, served by a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
