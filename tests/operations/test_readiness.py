"""The health probes report correctly when PostgreSQL is killed, frozen and restarted."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from httpx import AsyncClient

from app.embedded import EmbeddedServer, embedded_postgres, ensure_database, processes
from app.migrations import upgrade
from tests.kit import free_port

pytestmark = pytest.mark.verify

SMALL = {"shared_buffers": "16MB"}  # and durable: committed rows survive a kill
LIMIT_SECONDS = 2.0  # for a probe to report the change
TURN_SECONDS = 0.02


class Postgres:
    """A separate server for this test, with the same data and port after each restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running = ExitStack()

    def start(self) -> EmbeddedServer:
        return self._running.enter_context(embedded_postgres(self.folder, SMALL))

    def stop(self) -> None:
        self.send(signal.SIGCONT)
        self._running.close()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the server."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(process, number)


@pytest.fixture
def postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    port = free_port()
    monkeypatch.setattr(processes, "_free_port", lambda: port)
    with tempfile.TemporaryDirectory(prefix="tessera-test-") as folder:
        Path(folder).chmod(0o755)
        yield Postgres(Path(folder))


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    url = asyncio.run(ensure_database(postgres.start(), "tessera"))
    upgrade(url)
    yield url
    with suppress(FileNotFoundError):
        postgres.stop()


async def status(client: AsyncClient, path: str) -> int:
    """Returns the status of an answer, which must arrive within the limit.

    Counts the time in turns of the event loop, so that time in which a busy machine does not run
    this process does not count.
    """
    answering = asyncio.create_task(client.get(path))
    for _ in range(round(LIMIT_SECONDS / TURN_SECONDS)):
        await asyncio.wait([answering], timeout=TURN_SECONDS)
        if answering.done():
            return answering.result().status_code
    answering.cancel()
    raise AssertionError(f"an answer of {path} did not come within {LIMIT_SECONDS:g} s")


async def test_a_server_that_is_killed_and_started_again(
    anonymous: AsyncClient, postgres: Postgres
) -> None:
    assert await status(anonymous, "/readyz") == 200
    postgres.send(signal.SIGKILL)
    assert await status(anonymous, "/readyz") == 503
    assert await status(anonymous, "/healthz") == 200
    postgres.start()
    assert await status(anonymous, "/readyz") == 200
    assert await status(anonymous, "/nothing") == 404


async def test_a_server_that_is_frozen(anonymous: AsyncClient, postgres: Postgres) -> None:
    assert await status(anonymous, "/readyz") == 200
    postgres.send(signal.SIGSTOP)
    for _ in range(3):
        assert await status(anonymous, "/readyz") == 503
        assert await status(anonymous, "/healthz") == 200
    postgres.send(signal.SIGCONT)
    assert await status(anonymous, "/readyz") == 200
