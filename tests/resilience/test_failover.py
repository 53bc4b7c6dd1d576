"""A standby takes over from the primary while clients write: in each of the usual ways, of which
none asks for a restart of the API, or for connections to be ended by hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import pytest
import pytest_asyncio

from app.embedded import EmbeddedServer, ensure_database
from app.migrations import upgrade
from tests.kit import eventually, free_port
from tests.resilience.conftest import Report, settings_of_api
from tests.resilience.endpoint import running_endpoint
from tests.resilience.load import audit, under_load
from tests.resilience.pairs import running_primary, running_standby
from tests.resilience.servers import Proxy
from tests.serving import Served, serving

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.verify,
]
WITHIN_SECONDS = 30.0
DATABASE = "faults"
SELECT_POSITION = "SELECT pg_current_wal_lsn()::text"
IS_REPLAYED = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"

COUNT_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1"


@dataclass
class Pair:
    """A primary and its standby, each behind its own address, which a test can cut off."""

    primary: EmbeddedServer
    standby: EmbeddedServer
    folder: Path
    settings: dict[str, str]
    to_primary: Proxy = field(default_factory=Proxy)
    to_standby: Proxy = field(default_factory=Proxy)
    apis: ExitStack = field(default_factory=ExitStack)

    def url(self, *proxies: Proxy) -> str:
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
        return f"postgresql://postgres:{self.primary.password}@{hosts}/{DATABASE}?sslmode=disable"

    async def start_api(self, url: str, **settings: str) -> Served:
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir()
        runs = serving(folder, free_port(), self.settings | {"database_url": url} | settings)
        return await asyncio.to_thread(self.apis.enter_context, runs)

    async def make_read_only(self) -> None:
        """Makes the primary refuse changes, without ending a connection."""
        await execute(self.primary, "ALTER SYSTEM SET default_transaction_read_only = on")
        await execute(self.primary, "SELECT pg_reload_conf()")

    async def promote(self) -> None:
        """Promotes the standby once it has replayed what the primary has written."""
        position = await execute(self.primary, SELECT_POSITION)

        async def is_replayed() -> bool:
            return bool(await execute(self.standby, IS_REPLAYED, position))

        await eventually(is_replayed, f"{position} at the standby", WITHIN_SECONDS)
        await execute(self.standby, "SELECT pg_promote()")


async def execute(server: EmbeddedServer, statement: str, *arguments: object) -> object:
    connection = await asyncpg.connect(server.url())
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        connection.terminate()


@pytest_asyncio.fixture(loop_scope="session")
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        primary = await asyncio.to_thread(stack.enter_context, running_primary())
        await asyncio.to_thread(upgrade, await ensure_database(primary, DATABASE))
        standby = await asyncio.to_thread(stack.enter_context, running_standby(primary))
        endpoint = await stack.enter_async_context(running_endpoint())
        pair = Pair(primary, standby, tmp_path, settings_of_api("", endpoint))
        for proxy, server in ((pair.to_primary, primary), (pair.to_standby, standby)):
            proxy.target = server.port
            listener = await proxy.start()
            stack.callback(listener.close)
            stack.callback(proxy.reset_connections)
        stack.push_async_callback(asyncio.to_thread, pair.apis.close)
        yield pair


async def is_ready(api: Served) -> bool:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{api.address}/readyz", timeout=10)).status_code == 200


async def test_a_primary_that_is_read_only_is_left_for_its_successor(
    pair: Pair, report: Report
) -> None:
    """A planned switch behind one address: no connection to the former primary is closed."""
    api = await pair.start_api(pair.url(pair.to_primary))
    async with under_load(api.address) as load:
        await pair.make_read_only()
        await load.wait_for_failure()
        assert not await is_ready(api)
        await pair.promote()
        pair.to_primary.target = pair.standby.port
        load.end_fault()
        await load.wait_for_writes()
        assert await is_ready(api)

        async def none_left() -> bool:
            return await execute(pair.primary, COUNT_CONNECTIONS, DATABASE) == 0

        await eventually(none_left, "the last connection to the former primary", WITHIN_SECONDS)
    assert load.answers.keys() <= {200, 201, 503}, load.answers
    await audit(load, pair.standby.url(DATABASE))
    report("PostgreSQL read-only, then a standby promoted behind the same address", load)


async def test_a_host_that_says_nothing_blocks_no_other(pair: Pair, report: Report) -> None:
    """Its machine has lost power: connections fail when the kernel notices, and new ones hang."""
    api = await pair.start_api(pair.url(pair.to_primary, pair.to_standby), request_timeout="2")
    async with under_load(api.address) as load:
        pair.to_primary.freeze()
        pair.to_primary.reset_connections()
        await load.wait_for_failure()
        await pair.promote()
        load.end_fault()
        await load.wait_for_writes()
        await eventually(lambda: is_ready(api), "readiness", WITHIN_SECONDS)
    assert load.answers.keys() <= {200, 201, 503}, load.answers
    await audit(load, pair.standby.url(DATABASE))
    report("PostgreSQL: of two hosts the primary is silent, the other is promoted", load)


async def test_of_several_hosts_the_one_that_takes_changes_is_found(
    pair: Pair, report: Report
) -> None:
    """`postgresql://…@h1,h2/…`: the primary dies, and for a while no host takes changes."""
    api = await pair.start_api(pair.url(pair.to_standby, pair.to_primary))
    async with under_load(api.address) as load:
        await pair.make_read_only()
        await load.wait_for_failure()
        pair.to_primary.target = free_port()  # no process listens
        pair.to_primary.reset_connections()
        assert not await is_ready(api)
        await pair.promote()
        load.end_fault()
        await load.wait_for_writes()
        assert await is_ready(api)
    assert load.answers.keys() <= {200, 201, 503}, load.answers
    await audit(load, pair.standby.url(DATABASE))
    report("PostgreSQL: of two hosts the primary dies, the other is promoted", load)
