"""Patroni lets its standby take over while clients write: after each fault, by each way of finding
the primary, without a restart of the API.

`make verify args="long tests/resilience/test_patroni.py -n0"` compares the time without a write to
that of a client that has nothing but asyncpg. The APIs run through all tests, so that a test also
sees what the fault before it has broken.
"""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
import pytest_asyncio

from app.migrations import upgrade
from shared.db.errors import CONNECT_ERRORS
from tests.kit import Redis, eventually, free_port, wait_until
from tests.resilience.conftest import Report, settings_of_api
from tests.resilience.endpoint import running_endpoint
from tests.resilience.load import PAUSE_SECONDS, Load, audit, under_load
from tests.resilience.patroni import Cluster, Container, running_cluster
from tests.serving import serving

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(600),
    pytest.mark.verify,
]
DATABASE = "faults"
CLIENTS = 3
WITHIN_SECONDS = 60.0
STATUSES = {200, 201, 503}
BARE_TIMEOUT_SECONDS = 2.0
BEHIND_BARE_SECONDS = 10.0
PROBE_SECONDS = 0.2
NOTICED_SECONDS = 3.0  # after which /readyz knows
CREATE_BARE_WRITES = "CREATE TABLE bare_writes (title text)"
INSERT_BARE_WRITE = "INSERT INTO bare_writes VALUES ($1)"
FENCE = f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on"
END_CONNECTIONS = f"""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = '{DATABASE}' AND pid <> pg_backend_pid()
"""
END_FENCE = (
    "SET default_transaction_read_only = off",
    f"ALTER DATABASE {DATABASE} RESET default_transaction_read_only",
)
COUNT_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tessera'"


@dataclass
class Services:
    """An API of two processes for each way of finding the primary, and its settings."""

    cluster: Cluster
    settings: dict[str, dict[str, str]]
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def database_url(self) -> str:
        """The URL of the primary, whichever node that is."""
        return f"{self.cluster.url(database=DATABASE)}&target_session_attrs=read-write"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    async with AsyncExitStack() as stack:
        cluster = await asyncio.to_thread(stack.enter_context, running_cluster())
        hosts = cluster.url(database=DATABASE)
        haproxy, pgbouncer = (
            cluster.url(cluster.containers[name], database=DATABASE)
            for name in ("haproxy", "pgbouncer")
        )
        ways = {
            "hosts": {"database_url": hosts, "database_replica_url": hosts},
            "HAProxy": {"database_url": haproxy},
            "pgbouncer": {"database_url": pgbouncer, "database_direct_url": hosts},
        }
        services = Services(cluster, ways)
        primary = await asyncio.to_thread(cluster.primary)
        await asyncio.to_thread(primary.run_sql, f"CREATE DATABASE {DATABASE}")
        await asyncio.to_thread(upgrade, services.database_url)
        create = partial(primary.run_sql, CREATE_BARE_WRITES, database=DATABASE)
        await asyncio.to_thread(create)
        redis = Redis()
        redis.start()
        stack.callback(redis.kill)
        endpoint = await stack.enter_async_context(running_endpoint())
        common = settings_of_api("", endpoint) | {"redis_url": redis.url, "request_timeout": "10"}
        for way, settings in ways.items():
            folder = tmp_path_factory.mktemp(way)
            runs = serving(folder, free_port(), common | settings, workers=2)
            api = await asyncio.to_thread(stack.enter_context, runs)
            services.addresses[way] = api.address
        yield services


@dataclass
class BareClient:
    """Writes by asyncpg alone; after an error, it connects again."""

    url: str
    acknowledged_at: list[float] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            with suppress(*CONNECT_ERRORS):
                await self._write_until_it_fails()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _write_until_it_fails(self) -> None:
        listed = urlsplit(self.url).netloc.rpartition("@")[2]
        hosts = listed.split(",")
        shuffled = ",".join(random.sample(hosts, k=len(hosts)))  # else a silent one is the first
        connection = await asyncpg.connect(
            f"{self.url.replace(listed, shuffled)}&target_session_attrs=read-write",
            timeout=BARE_TIMEOUT_SECONDS,
            command_timeout=BARE_TIMEOUT_SECONDS,
            statement_cache_size=0,
        )
        try:
            while True:
                await connection.execute(INSERT_BARE_WRITE, secrets.token_hex())
                self.acknowledged_at.append(time.monotonic())
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            connection.terminate()


@dataclass
class Trial:
    """What clients of one API saw of a fault, and a bare client beside them."""

    load: Load
    bare: BareClient
    probes: list[tuple[float, bool]] = field(default_factory=list)
    """When `/readyz` was asked, and whether it said that the API is ready."""

    async def probe(self) -> None:
        async with httpx.AsyncClient(base_url=self.load.addresses[0], timeout=10) as client:
            while True:
                asked_at = time.monotonic()
                answer = await client.get("/readyz")
                self.probes.append((asked_at, answer.status_code == 200))
                await asyncio.sleep(PROBE_SECONDS)

    def is_ready(self) -> bool:
        return all(ready for _, ready in self.probes[-5:])

    def assert_probes_are_true(self) -> None:
        """Fails if an API that took no write for long said meanwhile that it is ready."""
        began, ended = longest_gap(self.load.acknowledged_at)
        ready = [asked_at for asked_at, is_ready in self.probes if is_ready]
        assert not [at for at in ready if began + NOTICED_SECONDS < at < ended - NOTICED_SECONDS]


@asynccontextmanager
async def trial(address: str, database_url: str) -> AsyncIterator[Trial]:
    async with under_load(address, clients=CLIENTS) as load:
        running = Trial(load, BareClient(database_url))
        tasks = [asyncio.create_task(each) for each in (running.bare.run(), running.probe())]
        try:
            await eventually(lambda: running.bare.acknowledged_at, "a bare write")
            yield running
            for task in tasks:
                assert not task.done(), task.exception()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def longest_gap(times: Sequence[float]) -> tuple[float, float]:
    """Returns the two neighbours that are furthest from each other."""
    return max(pairwise(times), key=lambda pair: pair[1] - pair[0])


def switch_over(cluster: Cluster, _primary: Container) -> None:
    cluster.control("switchover", "tessera", "--force")


def kill(_cluster: Cluster, primary: Container) -> None:
    primary.kill()


def pause(_cluster: Cluster, primary: Container) -> None:
    primary.pause()


def cut_off(cluster: Cluster, primary: Container) -> None:
    others = (each.address for each in cluster.containers.values() if each is not primary)
    primary.cut_off_from(*others, cluster.gateway)


def cut_off_from_etcd(cluster: Cluster, primary: Container) -> None:
    primary.cut_off_from(cluster.containers["etcd"].address)
    successor = set(cluster.nodes) - {primary}
    wait_until(lambda: cluster.find("primary") in successor, "the successor", WITHIN_SECONDS)


def fence_and_switch_over(cluster: Cluster, primary: Container) -> None:
    primary.run_sql(FENCE, END_CONNECTIONS)
    switch_over(cluster, primary)
    cluster.primary().run_sql(*END_FENCE, database=DATABASE)
    cluster.containers["pgbouncer"].run_sql("RECONNECT", database="pgbouncer")


def pause_standby(cluster: Cluster, _primary: Container) -> None:
    """COMMITs wait until Patroni asks for no standby; reads, and so `/readyz`, do not."""
    standby = cluster.find("synchronous")
    assert standby
    standby.pause()


FAULTS: dict[str, Callable[[Cluster, Container], None]] = {
    "switched over": switch_over,
    "fenced, then switched over": fence_and_switch_over,
    "killed": kill,
    "paused": pause,
    "cut off": cut_off,
    "cut off from etcd": cut_off_from_etcd,
    "without its synchronous standby": pause_standby,
}
LONG = (kill, pause, cut_off, cut_off_from_etcd, pause_standby)  # Patroni itself waits for 20 s
STATUSES_OF_WAITS = {
    pause: {0, 429},  # an import waits longer than its client does; others of the account are busy
    pause_standby: {0, 409, 429},  # and the first COMMIT with the same key is not done
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(name, marks=[pytest.mark.long] if fault in LONG else [])
        for name, fault in FAULTS.items()
    ],
)
async def test_after_a_fault_of_the_primary_writes_go_on(
    services: Services, report: Report, fault: str
) -> None:
    cluster = services.cluster
    async with AsyncExitStack() as stack:
        trials = {
            way: await stack.enter_async_context(trial(address, settings["database_url"]))
            for (way, settings), address in zip(
                services.settings.items(), services.addresses.values(), strict=True
            )
        }
        primary = await asyncio.to_thread(cluster.primary)
        for each in trials.values():
            each.load.end_fault()
        await asyncio.to_thread(FAULTS[fault], cluster, primary)
        for each in trials.values():
            await each.load.wait_for_writes()
        await asyncio.to_thread(cluster.heal)
        for each in trials.values():
            await each.load.wait_for_writes()
            await eventually(each.is_ready, "readiness", WITHIN_SECONDS)
    for way, each in trials.items():
        await audit(each.load, services.database_url)
        allowed = STATUSES | STATUSES_OF_WAITS.get(FAULTS[fault], set())
        assert each.load.answers.keys() <= allowed, (way, each.load.answers)
        if FAULTS[fault] is not pause_standby:
            each.assert_probes_are_true()
        gap, gap_of_bare = (
            ended - began
            for began, ended in (
                longest_gap(each.load.acknowledged_at),
                longest_gap(each.bare.acknowledged_at),
            )
        )
        assert gap < gap_of_bare + BEHIND_BARE_SECONDS
        without = f"{gap:.1f} s without a write, bare {gap_of_bare:.1f} s"
        report(f"Patroni: primary {fault}, found by {way}: {without}", each.load)


async def test_a_client_reads_its_own_writes_although_the_standby_lags(services: Services) -> None:
    standby = await asyncio.to_thread(services.cluster.find, "synchronous")
    assert standby
    address = services.addresses["hosts"]
    load = Load([address])
    await load.sign_up()
    async with httpx.AsyncClient(base_url=address, headers=load.headers) as client:

        async def standby_is_read() -> bool:
            assert (await client.get("/items")).status_code == 200
            return await asyncio.to_thread(standby.run_sql, COUNT_CONNECTIONS) != "0"

        await eventually(standby_is_read, "a read that reached the standby", WITHIN_SECONDS)
        await asyncio.to_thread(standby.run_sql, "SELECT pg_wal_replay_pause()")
        try:
            for _ in range(20):
                created = await client.post("/items", json={"title": "Mug", "price": 1})
                for _ in range(4):  # by either process
                    assert (await client.get(created.headers["Location"])).status_code == 200
        finally:
            await asyncio.to_thread(standby.run_sql, "SELECT pg_wal_replay_resume()")
