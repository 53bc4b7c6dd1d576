"""A worker that is away: its owners get 503, the others are served, and nothing that was
acknowledged is lost."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from math import isnan
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
from httpx import AsyncClient, Response

from shared.db.errors import OUTCOME_UNKNOWN, WORKER_LOST
from shared.settings import Settings
from tests.app_helpers import parse_metrics, sample
from tests.kit import SignUp, eventually, is_ready
from tests.kit.citus import NODES, Cluster
from tests.operations.test_doctor import doctor
from tests.resilience.patroni import IMAGE as HAS_IP
from tests.resilience.patroni import docker

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]

SELECT_NODE = """
SELECT nodename FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
WHERE shardid = get_shard_id_for_distribution_column('items', $1::uuid)
"""
Fault: TypeAlias = Callable[[Cluster], AbstractContextManager[None]]

NOTICED = {WORKER_LOST, OUTCOME_UNKNOWN}  # and not that the request's time was over
MUG = {"title": "Mug", "price": 1}
ACCOUNTS = 8  # of which each worker has some; all on one of two has a chance of 1 in 128


@pytest.fixture
def database_url(distributed: str) -> str:
    return distributed


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"request_timeout": 20.0})


async def accounts_by_worker(database_url: str, sign_up: SignUp) -> dict[str, list[AsyncClient]]:
    found: dict[str, list[AsyncClient]] = {name: [] for name in NODES[1:]}
    connection = await asyncpg.connect(database_url)
    for _ in range(ACCOUNTS):
        client = await sign_up()
        owner_id = (await client.get("/users/me")).json()["id"]
        found[await connection.fetchval(SELECT_NODE, owner_id)].append(client)
    await connection.close()
    assert all(found.values()), "all accounts are on one worker"
    return found


@contextmanager
def killed(cluster: Cluster) -> Iterator[None]:
    worker = cluster.containers[2].get_wrapped_container()
    worker.kill()
    try:
        yield
    finally:
        worker.start()


@contextmanager
def vanished(cluster: Cluster) -> Iterator[None]:
    """Drops all packets to the coordinator, as if the worker had lost power: no connection is
    closed or refused."""
    worker = cluster.containers[2].get_wrapped_container()
    coordinator, _ = docker("exec", worker.id, "getent", "hosts", NODES[0]).split()
    routes = ("run", "--rm", f"--network=container:{worker.id}", "--cap-add=NET_ADMIN", HAS_IP)
    try:
        docker(*routes, "ip", "route", "replace", "blackhole", coordinator)
    except AssertionError as error:
        pytest.skip(f"{HAS_IP} does not run: {error}")
    try:
        yield
    finally:
        docker(*routes, "ip", "route", "flush", "type", "blackhole")


@pytest.mark.parametrize("fault", [killed, vanished])
async def test_only_the_owners_of_a_worker_notice_that_it_is_away(
    fault: Fault,
    cluster: Cluster,
    database_url: str,
    sign_up: SignUp,
    anonymous: AsyncClient,
    tmp_path: Path,
) -> None:
    accounts = await accounts_by_worker(database_url, sign_up)
    there, away = accounts[NODES[1]], accounts[NODES[2]]
    acknowledged = dict.fromkeys([*there, *away], 0)
    refused: list[tuple[AsyncClient, Response]] = []
    stopping = asyncio.Event()

    async def write(client: AsyncClient) -> None:
        while not stopping.is_set():
            answer = await client.post("/items", json=MUG)
            if answer.status_code == 201:
                acknowledged[client] += 1
            else:
                refused.append((client, answer))
            await asyncio.sleep(0.02)

    writers = [asyncio.create_task(write(client)) for client in acknowledged]
    await eventually(lambda: all(acknowledged.values()), "a write of each account", 60)
    with fault(cluster):
        await eventually(lambda: len(refused) > 10, "refused writes", 60)
        before = [acknowledged[client] for client in there]
        await eventually(
            lambda: all(acknowledged[c] > n for c, n in zip(there, before, strict=True)),
            "a further write of each account elsewhere",
            60,
        )
        for client in there:
            assert (await client.get("/items")).status_code == 200
        for client in away:
            answer = await client.get("/items")
            assert answer.status_code == 503, answer.text
            assert answer.json()["detail"] == WORKER_LOST
        await eventually(lambda: is_ready(anonymous), "readiness", 30)
        shown = parse_metrics((await anonymous.get("/metrics")).text)
        assert isnan(shown[sample("tessera_backlog_rows", task="deliver_mail", state="waiting")])
        for name in NODES[1:]:
            assert shown[sample("tessera_citus_shards", worker=f"{name}:5432")] == 2
        assert shown[sample("tessera_citus_refusals_total")] >= len(away)
        said, _ = await asyncio.to_thread(doctor, tmp_path, database_url)
        assert "wrong Citus: worker2:5432 does not answer: its owners get 503" in said
    before = [acknowledged[client] for client in away]
    await eventually(
        lambda: all(acknowledged[c] > n for c, n in zip(away, before, strict=True)),
        "a further write of each account of the worker",
        120,
    )
    stopping.set()
    await asyncio.gather(*writers)
    assert {answer.status_code for _, answer in refused} == {503}
    assert {answer.json()["detail"] for _, answer in refused} <= NOTICED
    assert {client for client, _ in refused} <= set(away)
    for client, count in acknowledged.items():
        total = (await client.get("/items?limit=1&total=true")).json()["total"]
        assert total >= count, "an acknowledged write is lost"
