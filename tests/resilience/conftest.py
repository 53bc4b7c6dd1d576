"""One stack for all tests: PostgreSQL behind a proxy, Redis, an embedding endpoint, the API."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from app.embedded import EmbeddedPostgresError
from app.migrations import upgrade
from tests.kit import Redis, free_port
from tests.resilience.endpoint import DIMENSION, Endpoint, running_endpoint
from tests.resilience.load import Load
from tests.resilience.servers import (
    Postgres,
    Proxy,
    database_of,
    postgres_folder,
)
from tests.serving import Served, serving

TABLE = pytest.StashKey[list[str]]()


@dataclass
class Stack:
    """The servers that the tests break.

    Closing `postgres_runs` or `api_runs` stops the servers in it; `start_postgres` and `start_api`
    start them again.
    """

    postgres: Postgres
    proxy: Proxy
    endpoint: Endpoint
    redis: Redis
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    postgres_runs: ExitStack = field(default_factory=ExitStack)
    apis: list[Served] = field(default_factory=list)
    api_runs: ExitStack = field(default_factory=ExitStack)

    @property
    def address(self) -> str:
        return self.apis[0].address

    @property
    def database_url(self) -> str:
        return self.settings["database_url"]

    async def start_postgres(self) -> None:
        """Starts PostgreSQL at a new port, and points the proxy to it."""
        await asyncio.to_thread(self.postgres_runs.enter_context, self.postgres.running())
        self.proxy.target = self.postgres.server.port

    async def start_api(self, port: int | None = None, **settings: str) -> Served:
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        runs = serving(folder, port or free_port(), self.settings | settings)
        return await asyncio.to_thread(self.api_runs.enter_context, runs)


def settings_of_api(url: str, endpoint: Endpoint) -> dict[str, str]:
    return {
        "env": "test",
        "database_url": url,
        "secret_key": "a secret for tests, 32 bytes or more",
        "log_level": "warning",
        "embedding_provider": "openai",
        "embedding_url": endpoint.url,
        "embedding_model": "test",
        "embedding_dim": str(DIMENSION),
        "embedding_timeout": "1",
    }


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    if sys.platform != "linux":
        pytest.skip("processes are found and frozen by way of /proc")
    async with AsyncExitStack() as cleanup:
        folder = cleanup.enter_context(postgres_folder())
        proxy, redis = Proxy(), Redis()
        listener = await proxy.start()
        cleanup.callback(listener.close)
        cleanup.callback(proxy.reset_connections)
        redis.start()
        cleanup.callback(redis.kill)
        endpoint = await cleanup.enter_async_context(running_endpoint())
        broken = Stack(Postgres(folder), proxy, endpoint, redis, tmp_path_factory.mktemp("api"))
        cleanup.callback(broken.postgres_runs.close)
        try:
            await broken.start_postgres()
        except EmbeddedPostgresError as error:
            pytest.skip(f"the embedded PostgreSQL does not start: {error}")
        url = await database_of(broken.postgres, proxy)
        await asyncio.to_thread(upgrade, url)
        broken.settings = settings_of_api(url, endpoint)
        broken.settings["redis_url"] = f"redis://127.0.0.1:{redis.port}"
        cleanup.push_async_callback(asyncio.to_thread, broken.api_runs.close)
        broken.apis.append(await broken.start_api())
        yield broken


Report = Callable[[str, Load], None]


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Report:
    """Adds a line to the table of faults: `report("PostgreSQL killed", load)`."""

    def add(fault: str, load: Load) -> None:
        total = load.answers.total()
        recovery = f"{load.recovery:.1f} s" if load.fault_ended_at else "none needed"
        pytestconfig.stash.setdefault(TABLE, []).append(
            f"| {fault} | {total / load.seconds:.0f}/s | {load.failed} of {total} "
            f"| {recovery} | 0 |"
        )

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := terminalreporter.config.stash.get(TABLE, []):
        terminalreporter.section("faults")
        terminalreporter.line("| fault | load held | requests failed | recovery | writes lost |")
        terminalreporter.line("|---|---|---|---|---|")
        for line in sorted(lines):
            terminalreporter.line(line)
