"""`python -m app serve` in a fresh clone: it starts an embedded PostgreSQL, and leaves no process
behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.kit import free_port, wait_until
from tests.operations.clones import GONE_TIMEOUT_SECONDS, fresh_clone, postgres_of, wait_until_gone
from tests.serving import Served, environment, serving

pytestmark = pytest.mark.verify


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fresh_clone(tmp_path_factory.mktemp("clone")) as folder:
        yield folder


@contextmanager
def run(clone: Path, port: int | None = None) -> Iterator[Served]:
    with serving(clone, port or free_port(), {"env": "dev"}, code=clone) as served:
        yield served


def test_the_printed_lines_work_when_pasted(clone: Path) -> None:
    with run(clone) as served:
        lines = served.output.read_text().splitlines()
        assert any(served.address in line for line in lines)
        pasted = "\n".join(line for line in lines if "curl" in line)
        done = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, timeout=60)
    assert '"items":[{"id":' in done.stdout, done.stdout + done.stderr
    assert done.stdout.count('"title"') == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(clone: Path, number: signal.Signals) -> None:
    with run(clone) as served:
        assert postgres_of(clone), "the test sees no PostgreSQL"
        assert served.stop(number) in {0, 130}
        assert postgres_of(clone) == []
    assert "Traceback" not in served.log.read_text()


@pytest.mark.timeout(240)  # it starts twice
def test_after_a_kill_nothing_is_left_and_the_next_start_works(clone: Path) -> None:
    item = {"title": "Kept", "price": 1}
    with run(clone) as served:
        token = sign_in(served)
        created = httpx.post(f"{served.address}/items", json=item, headers=token, timeout=30)
        assert created.status_code == 201
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until_gone(clone)
    with run(clone) as served:
        url = served.address + created.headers["location"]
        found = httpx.get(url, headers=sign_in(served), timeout=30)
        assert found.json()["title"] == "Kept"


def children(pid: int) -> set[int]:
    """Returns the worker processes, without the resource tracker of multiprocessing."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in found if b"spawn_main" in cmdline(child)}


def cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.timeout(240)  # each worker takes as long to start as one process
def test_a_worker_that_dies_is_replaced_and_none_outlives_the_first(clone: Path) -> None:
    with serving(clone, free_port(), {"env": "dev"}, code=clone, workers=2) as served:
        before = children(served.process.pid)
        assert len(before) == 2
        os.kill(before.pop(), signal.SIGKILL)
        wait_until(
            lambda: len(children(served.process.pid) - before) == 1,
            "the worker that replaces the killed one",
            GONE_TIMEOUT_SECONDS,
        )
        assert httpx.get(f"{served.address}/readyz", timeout=30).status_code == 200
        after = children(served.process.pid)
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until(
        lambda: not any(b"spawn_main" in cmdline(str(pid)) for pid in after),
        "the end of the workers",
        GONE_TIMEOUT_SECONDS,
    )
    wait_until_gone(clone)


def sign_in(served: Served) -> dict[str, str]:
    form = {
        "grant_type": "password",
        "username": "demo@example.com",
        "password": "demo-password",
    }
    answer = httpx.post(f"{served.address}/auth/token", data=form, timeout=30)
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def test_a_taken_port_is_one_clear_line(clone: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "app", "serve"],
            cwd=clone,
            env=environment({"env": "dev"}) | {"PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: port {port} on 127.0.0.1 cannot be used")
    assert postgres_of(clone) == []
