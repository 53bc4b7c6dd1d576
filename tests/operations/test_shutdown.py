"""A process that is told to stop loses no request, and one that cannot start says so."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from shared.settings import Settings
from tests.serving import ROOT, Served, environment, serving

pytestmark = pytest.mark.verify

WITHIN_SECONDS = 20.0
EVERY_SECONDS = 0.02
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
BUSY = """
import asyncio, signal, sys, time
from types import SimpleNamespace
from fastapi import FastAPI
from app.server import listen, serve

async def keep_busy():
    while True:
        time.sleep(0.15)
        await asyncio.sleep(0)

def ready():
    app.state.task = asyncio.ensure_future(keep_busy())
    print("ready", flush=True)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
app = FastAPI()
app.state.settings = SimpleNamespace(shutdown_delay=0)
serve(app, listen("127.0.0.1", int(sys.argv[1])), ready)
"""
"""A server that accepts connections six times a second, so that some always wait for that."""


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


def test_a_connection_that_waits_to_be_accepted_is_heard(unused_tcp_port: int) -> None:
    command = [sys.executable, "-c", BUSY, str(unused_tcp_port)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment({}), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        stop_while_clients_connect(unused_tcp_port, process, lambda: process.poll() is not None)


@pytest.mark.timeout(240)  # each worker starts as slowly as the whole
def test_several_workers_that_stop_hear_everybody_out(
    settings: Settings, tmp_path: Path, unused_tcp_port: int
) -> None:
    with serving(tmp_path, unused_tcp_port, variables(settings), workers=2) as served:
        process = served.process
        stop_while_clients_connect(unused_tcp_port, process, lambda: process.poll() is not None)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_start_that_fails_is_no_success(
    settings: Settings, unused_tcp_port: int, workers: int
) -> None:
    command = ["app", "serve", f"--port={unused_tcp_port}", f"--workers={workers}"]
    broken = variables(settings, embedding_model_path="/nowhere")
    ended = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment(broken), capture_output=True
    )
    assert b"APP_EMBEDDING_MODEL_PATH" in ended.stderr
    assert ended.returncode not in (0, None)


@pytest.mark.timeout(240)
def test_sighup_replaces_workers_however_slowly_they_start(
    settings: Settings, tmp_path: Path, unused_tcp_port: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # each start waits seconds for its answer
        endpoint = {
            "embedding_provider": "openai",
            "embedding_url": f"http://127.0.0.1:{mute.getsockname()[1]}/v1",
            "embedding_model": "none",
            "embedding_dim": "3",
        }
        slow = variables(settings, **endpoint)
        with serving(tmp_path, unused_tcp_port, slow, workers=2) as served:
            served.process.send_signal(signal.SIGHUP)
            while (said := served.log.read_text()).count("Terminated child process") < 2:
                assert "aborting the restart" not in said
                time.sleep(0.1)
            assert status(served, "/readyz") == 200


def stop_while_clients_connect(
    port: int, process: subprocess.Popen[bytes], stopped: Callable[[], bool]
) -> None:
    """Fails if a connection was made and then broke: its client cannot know what happened."""
    made: list[bytes | Exception] = []
    done = threading.Event()

    def ask() -> None:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=WITHIN_SECONDS)
        except ConnectionRefusedError:
            return
        with connection:
            try:
                connection.sendall(POST)
                made.append(connection.recv(4096)[:8])
            except OSError as error:
                made.append(error)

    with ThreadPoolExecutor(64) as clients:
        asked = 0
        while not done.wait(EVERY_SECONDS):
            clients.submit(ask)
            asked += 1
            if asked == 25:
                process.send_signal(signal.SIGTERM)
            if stopped():
                done.set()
    assert process.returncode == 0
    assert set(made) == {b"HTTP/1.1"}
