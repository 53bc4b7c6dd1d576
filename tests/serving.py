"""Runs the API in a separate process, or in a thread of this one."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, AnyStr

import httpx
import uvicorn
from fastapi import FastAPI

from tests.kit import wait_until

ROOT = Path(__file__).parent.parent
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Served:
    """A running server; the files `output` and `log` hold its stdout and stderr."""

    address: str
    process: subprocess.Popen[bytes]
    output: Path
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends the signal, waits for the server to end, and returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_SECONDS)


@contextmanager
def serving_app(app: FastAPI) -> Iterator[str]:
    """Serves an application of this process during the block, and yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive(), "the server did not stop within 60 s"


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of this process with these settings as its only `APP_` variables.

    `APP_ENV` is `test` unless the settings say otherwise, so that `.env` is not read.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("APP_")}
    given = {f"APP_{name.upper()}": value for name, value in settings.items()}
    return kept | {"APP_ENV": "test"} | given


@contextmanager
def serving(
    folder: Path, port: int, settings: Mapping[str, str], code: Path = ROOT, workers: int = 1
) -> Iterator[Served]:
    """Runs `python -m app serve` during the block; otherwise as `serving_by` does.

    It ends with the process of the tests, also where that is killed.
    """
    command = ["app", "serve", f"--port={port}", f"--workers={workers}", "--until-parent-exits"]
    with serving_by(command, folder, port, settings, code) as served:
        yield served


@contextmanager
def serving_by(
    module: Sequence[str], folder: Path, port: int, settings: Mapping[str, str], code: Path = ROOT
) -> Iterator[Served]:
    """Runs a module of Python with these arguments during the block, which begins once the server
    answers.

    Writes its output to `folder`. `code` is the repository or a copy of it.
    """
    address = f"http://127.0.0.1:{port}"
    output, log = folder / "output", folder / "log"
    with output.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
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
        try:
            if process.poll() is None:
                served.stop()
        finally:
            process.kill()


def _wait_until_it_answers(served: Served) -> None:
    def answers() -> bool:
        status = served.process.poll()
        assert status is None, f"the server ended with {status}: {served.log.read_text()}"
        with suppress(httpx.TransportError):
            httpx.get(f"{served.address}/healthz")
            return True
        return False

    wait_until(answers, f"an answer of {served.address}/healthz", START_TIMEOUT_SECONDS)


def read_line(process: subprocess.Popen[AnyStr], what: str) -> AnyStr:
    """Returns the next line that a process prints, or an empty one if it has ended.

    The process must not print the line after it before this returns: `select` does not see lines
    that are buffered already.
    """
    assert process.stdout
    readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_SECONDS)
    assert readable, f"{what} did not come within {START_TIMEOUT_SECONDS:g} s"
    return process.stdout.readline()


def stop(process: subprocess.Popen[Any], seconds: float = STOP_TIMEOUT_SECONDS) -> None:
    """Sends SIGTERM and waits for the process to end; kills it if that takes too long."""
    process.terminate()
    try:
        process.wait(seconds)
    finally:
        process.kill()


def kill(served: Served) -> None:
    """Kills the server, and waits for it to end."""
    served.process.kill()
    served.process.wait(STOP_TIMEOUT_SECONDS)


def children(pid: int) -> list[int]:
    """Returns the ids of the running child processes of a process (Linux only)."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]
