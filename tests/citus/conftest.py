"""Databases of a cluster of Citus, which starts with the first test that needs it."""

import asyncio
import secrets
from collections.abc import Iterator

import pytest

from app.migrations import upgrade
from tests.kit.citus import (
    Cluster,
    create_cluster_database,
    distribute_all,
    drop_cluster_database,
    of_database,
    running_cluster,
)
from tests.kit.servers import docker_answers


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if not docker_answers():
        pytest.skip("no Docker daemon answers")
    try:
        with running_cluster() as cluster:
            yield cluster
    except pytest.UsageError as error:
        pytest.skip(str(error))


@pytest.fixture
def migrated(cluster: Cluster) -> Iterator[str]:
    """The URL of a migrated database of the coordinator, with workers and without a distributed
    table."""
    name = f"test_{secrets.token_hex(6)}"
    asyncio.run(create_cluster_database(cluster.urls, name))
    url = of_database(cluster.urls[0], name)
    upgrade(url)
    yield url
    asyncio.run(drop_cluster_database(cluster.urls, name))


@pytest.fixture
def distributed(migrated: str) -> str:
    """The URL of a database whose tables are distributed."""
    asyncio.run(distribute_all(migrated))
    return migrated
