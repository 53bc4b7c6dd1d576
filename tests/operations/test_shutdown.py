"""A graceful shutdown drains without losing a request; a failed start exits with a clear error."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from shared.settings import Settings
from tests.kit import free_port, wait_until
from tests.repository_copies import copy_repository
from tests.serving import ROOT, Served, environment, read_line, serving

pytestmark = pytest.mark.verify

WITHIN_SECONDS = 30.0
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
BUSY = """
import asyncio, signal, sys, time
from types import SimpleNamespace
from fastapi import FastAPI
from app.server import listen, serve
from shared.state import AppState

async def keep_busy():
    while True:
        time.sleep(0.15)
        await asyncio.sleep(0)

def ready():
    app.state.task = asyncio.ensure_future(keep_busy())
    print("ready", flush=True)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
app = FastAPI()
app.state = AppState()
app.state.settings = SimpleNamespace(shutdown_delay=0)
serve(app, listen("127.0.0.1", int(sys.argv[1])), ready)
"""
"""A server whose event loop accepts connections only about six times a second, so that some always
wait in the listen backlog."""

PROBES = """
import asyncio
from contextlib import asynccontextmanager
from shared.feature import Feature

@asynccontextmanager
async def lifespan(app):
    {lifespan}
    yield object()

feature = Feature(name="probes", lifespan=lifespan)
"""


@pytest.fixture
def port() -> int:
    return free_port()


def code_with(folder: Path, lifespan: str) -> Path:
    """Returns a copy of the repository with one more feature, whose lifespan begins with this."""
    copy_repository(folder)
    (folder / "features/probes").mkdir()
    (folder / "features/probes/__init__.py").touch()
    (folder / "features/probes/feature.py").write_text(PROBES.format(lifespan=lifespan))
    return folder


def variables(settings: Settings, **others: str) -> dict[str, str]:
    needed = {"env": "test", "database_url": settings.database_url or ""}
    return needed | {"secret_key": settings.secret()} | others


def status(served: Served, path: str) -> int:
    """Returns the status of a request on a new connection; 0 if the connection fails."""
    try:
        return httpx.get(served.address + path, timeout=30).status_code
    except httpx.TransportError:
        return 0


def wait_for(served: Served, path: str, expected: int) -> None:
    what = f"{path} with the status {expected}" if expected else "the end of the listener"
    wait_until(lambda: status(served, path) == expected, what, WITHIN_SECONDS)


@pytest.mark.timeout(240)  # each worker takes as long to start as one process
@pytest.mark.parametrize("workers", [1, 2])
def test_requests_are_answered_until_load_balancers_have_noticed(
    settings: Settings, tmp_path: Path, port: int, workers: int
) -> None:
    started = variables(settings, shutdown_delay="5")
    with serving(tmp_path, port, started, workers=workers) as served:
        assert status(served, "/readyz") == 200
        served.process.send_signal(signal.SIGTERM)
        wait_for(served, "/readyz", 503)
        assert status(served, "/healthz") == 200
        wait_for(served, "/healthz", 0)
        assert served.process.wait(WITHIN_SECONDS) == 0


def test_an_accepted_connection_is_served(settings: Settings, tmp_path: Path, port: int) -> None:
    with (
        serving(tmp_path, port, variables(settings)) as served,
        socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
    ):
        served.process.send_signal(signal.SIGTERM)
        wait_for(served, "/healthz", 0)
        connection.sendall(REQUEST)
        assert connection.recv(4096).startswith(b"HTTP/1.1 503")


def test_a_connection_in_the_listen_backlog_is_served(port: int) -> None:
    command = [sys.executable, "-c", BUSY, str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment({}), stdout=subprocess.PIPE
    ) as process:
        try:
            assert read_line(process, "the start of the server") == b"ready\n"
            stop_while_clients_connect(port, process)
        finally:
            process.kill()


@pytest.mark.timeout(240)  # each worker takes as long to start as one process
def test_several_workers_finish_their_requests_when_they_stop(
    settings: Settings, tmp_path: Path, port: int
) -> None:
    with serving(tmp_path, port, variables(settings), workers=2) as served:
        stop_while_clients_connect(port, served.process)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_start_exits_with_an_error(
    settings: Settings, tmp_path: Path, port: int, workers: int
) -> None:
    command = ["app", "serve", f"--port={port}", f"--workers={workers}"]
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=code_with(tmp_path, lifespan="raise FileNotFoundError('there is no model')"),
        env=environment(variables(settings)),
        capture_output=True,
        timeout=100,
    )
    assert b"there is no model" in ended.stderr
    assert ended.returncode not in (0, None)


@pytest.mark.timeout(240)
def test_sighup_replaces_workers_however_slowly_they_start(
    settings: Settings, tmp_path: Path, port: int
) -> None:
    slow = code_with(tmp_path / "code", lifespan="await asyncio.sleep(6)")
    with serving(tmp_path, port, variables(settings), slow, workers=2) as served:
        served.process.send_signal(signal.SIGHUP)

        def replaced() -> bool:
            said = served.log.read_text()
            assert "aborting the restart" not in said
            return said.count("Terminated child process") >= 2

        wait_until(replaced, "the end of both workers that are replaced", 120)
        wait_for(served, "/readyz", 200)


def stop_while_clients_connect(port: int, process: subprocess.Popen[bytes]) -> None:
    """Stops the server while clients connect; fails if a connection was established but got no
    answer, because its client could not tell whether the request was processed."""
    made: list[bytes | Exception] = []
    asked = 0

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

        def stopped() -> bool:
            """Returns whether the server has stopped; starts one more client on each call."""
            nonlocal asked
            clients.submit(ask)
            asked += 1
            if asked == 25:
                process.send_signal(signal.SIGTERM)
            return process.poll() is not None

        wait_until(stopped, "the end of the server", 60)
    assert process.returncode == 0
    assert set(made) == {b"HTTP/1.1"}
