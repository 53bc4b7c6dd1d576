"""`python -m app serve` as a newcomer runs it: with a PostgreSQL of its own, and no remains."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from shared.testing import free_port
from tests.serving import ROOT, Served, environment, serving

pytestmark = pytest.mark.verify

CODE = ("app", "features", "migrations", "shared")
GONE_TIMEOUT_SECONDS = 30.0


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the code, where nothing ever ran."""
    folder = tmp_path_factory.mktemp("clone")
    for name in CODE:
        ignored = shutil.ignore_patterns("__pycache__", "tests")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    yield folder
    system_folder = (folder / ".data" / "postgres" / "server").resolve()
    if system_folder.is_relative_to("/var/lib/tessera"):
        shutil.rmtree(system_folder)


@contextmanager
def run(clone: Path, port: int | None = None) -> Iterator[Served]:
    with serving(clone, port or free_port(), {"env": "dev"}, code=clone) as served:
        yield served


def postgres_of(clone: Path) -> list[int]:
    """The processes that have the clone's database open, or work in it."""
    data = str((clone / ".data" / "postgres").resolve())
    system_folder = str((clone / ".data" / "postgres" / "server").resolve())
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            where = os.readlink(process / "cwd")
        except OSError:
            continue
        if "postgres" in command and (
            any(path in command for path in (data, system_folder))
            or where.startswith((data, system_folder))
        ):
            found.append(int(process.name))
    return found


def wait_until_gone(clone: Path) -> None:
    deadline = time.monotonic() + GONE_TIMEOUT_SECONDS
    while postgres_of(clone):
        assert time.monotonic() < deadline, f"PostgreSQL still runs: {postgres_of(clone)}"
        time.sleep(0.05)


def test_the_printed_line_works_when_pasted(clone: Path) -> None:
    with run(clone) as served:
        lines = served.output.read_text().splitlines()
        assert any(served.address in line for line in lines)
        (line,) = [line.strip() for line in lines if "curl" in line]
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert '"items":[{"id":' in done.stdout, done.stdout + done.stderr
    assert done.stdout.count('"title"') == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(clone: Path, number: signal.Signals) -> None:
    with run(clone) as served:
        assert postgres_of(clone), "the test sees no PostgreSQL"
        assert served.stop(number) in {0, 130}
        assert postgres_of(clone) == []
    assert "Traceback" not in served.log.read_text()


def test_after_a_kill_nothing_is_left_and_the_next_start_works(clone: Path) -> None:
    item = {"title": "Kept", "price": 1}
    with run(clone) as served:
        token = sign_in(served)
        created = httpx.post(f"{served.address}/items", json=item, headers=token)
        assert created.status_code == 201
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until_gone(clone)
    with run(clone) as served:
        found = httpx.get(served.address + created.headers["location"], headers=sign_in(served))
        assert found.json()["title"] == "Kept"


def children(pid: int) -> set[int]:
    """The worker processes, without multiprocessing's own helper."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in found if b"spawn_main" in cmdline(child)}


def cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GONE_TIMEOUT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_dies_is_replaced_and_none_outlives_the_first(clone: Path) -> None:
    with serving(clone, free_port(), {"env": "dev"}, code=clone, workers=2) as served:
        before = children(served.process.pid)
        assert len(before) == 2
        os.kill(before.pop(), signal.SIGKILL)
        wait_until(lambda: len(children(served.process.pid) - before) == 1)
        assert httpx.get(f"{served.address}/readyz").status_code == 200
        after = children(served.process.pid)
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not any(b"spawn_main" in cmdline(str(pid)) for pid in after))
    wait_until_gone(clone)


def sign_in(served: Served) -> dict[str, str]:
    form = {
        "grant_type": "password",
        "username": "demo@example.com",
        "password": "demo-password",
    }
    token = httpx.post(f"{served.address}/auth/token", data=form).json()["access_token"]
    return {"Authorization": f"Bearer {token}"}


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
        )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: port {port} on 127.0.0.1 cannot be used")
    assert postgres_of(clone) == []
