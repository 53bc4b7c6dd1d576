"""A cluster of Citus in containers: a coordinator and two workers, whose databases are cloned
together, so that each test has its own distributed database."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from app.distribution import distribute

IMAGE = os.environ.get("CITUS_IMAGE", "citus-pgvector:pg17")
"""An image that has Citus and pgvector; app/deploy/citus/Dockerfile makes one."""

DROP_ATTEMPTS = 10
NODES = ("coordinator", "worker1", "worker2")
SETTINGS = {
    "shared_preload_libraries": "citus,pg_stat_statements",
    "citus.shard_count": "4",
    # Citus 14 hides shards from queries of pg_class, and fails on LEFT JOINs of it.
    "citus.override_table_visibility": "off",
    "citus.node_connection_timeout": "1s",
    "citus.node_conninfo": (
        "sslmode=require keepalives_idle=5 keepalives_interval=1 tcp_user_timeout=5000"
    ),
    "citus.stat_statements_track": "all",
    "citus.enable_stat_counters": "on",
    "pg_stat_statements.track_utility": "off",
    "wal_level": "logical",
    "max_connections": "300",
    "max_prepared_transactions": "300",
    "fsync": "off",
    "full_page_writes": "off",
}
SYSCTLS = {"net.ipv4.tcp_syn_retries": 2}


@dataclass(frozen=True)
class Cluster:
    """The containers of a cluster; the coordinator is the first."""

    containers: Sequence[Any]

    @property
    def urls(self) -> Sequence[str]:
        """The URLs of the databases `postgres`; a node that is started again has another port."""
        return [node.get_connection_url() for node in self.containers]


@contextmanager
def running_cluster(*, in_memory: bool = False) -> Iterator[Cluster]:
    """Starts a coordinator and two workers, which do not know each other yet. In memory they are
    quicker, and lose everything when they are stopped.

    Raises:
        UsageError: the image has not been built.
    """
    import docker  # a dependency of testcontainers, needed only here
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.network import Network

    try:
        docker.from_env().images.get(IMAGE)
    except docker.errors.DockerException as error:
        raise pytest.UsageError(
            f"the image {IMAGE} of CITUS_IMAGE cannot be had: {error}; app/deploy/citus/README.md"
        ) from None
    command = ["postgres"]
    for name, value in SETTINGS.items():
        command += ["-c", f"{name}={value}"]
    with ExitStack() as stack:
        network = stack.enter_context(Network())
        containers = []
        for name in NODES:
            node = PostgresContainer(IMAGE, driver=None, username="postgres", dbname="postgres")
            node.with_command(command).with_network(network).with_network_aliases(name)
            node.with_env("POSTGRES_HOST_AUTH_METHOD", "trust")
            node.with_kwargs(sysctls=SYSCTLS)
            if in_memory:
                node.with_tmpfs_mount("/var/lib/postgresql/data")
            containers.append(stack.enter_context(node))
        yield Cluster(containers)


async def create_cluster_database(nodes: Sequence[str], database: str) -> None:
    """Creates a database on each node, and makes the nodes a cluster."""
    for url in nodes:
        await _execute(url, f'CREATE DATABASE "{database}"')
    for url in nodes:
        await _execute(of_database(url, database), "CREATE EXTENSION citus")
        await _execute(of_database(url, database), "CREATE EXTENSION pg_stat_statements")
    coordinator = of_database(nodes[0], database)
    await _execute(coordinator, f"SELECT citus_set_coordinator_host('{NODES[0]}')")
    for worker in NODES[1:]:
        await _execute(coordinator, f"SELECT citus_add_node('{worker}', 5432)")


async def drop_cluster_database(nodes: Sequence[str], database: str) -> None:
    """Drops a database on each node. Citus connects to it at any moment, to find deadlocks."""
    for url in nodes:
        for attempt in range(DROP_ATTEMPTS):
            try:
                await _execute(url, f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
                break
            except asyncpg.ObjectInUseError:
                if attempt == DROP_ATTEMPTS - 1:
                    raise


async def freeze_template(nodes: Sequence[str], database: str) -> None:
    """Ends all connections to a database and allows no others: Citus keeps one to each."""
    for url in nodes:
        await _execute(url, f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false')
        await _execute(
            url,
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
        )


def of_database(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def distribute_all(url: str) -> None:
    """Distributes the tables of a migrated database."""
    async for _ in distribute(url):
        pass
