"""The PostgreSQL server of the tests: `APP_TEST_DATABASE_URL`, a container, or embedded."""

import asyncio
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from app.discovery import branches_of, extensions_of
from app.embedded import DISPOSABLE, embedded_postgres, ensure_database
from app.migrations import MigrationError, upgrade
from shared.feature import Feature
from tests.kit.citus import IMAGE as CITUS_IMAGE
from tests.kit.citus import (
    create_cluster_database,
    distribute_all,
    freeze_template,
    running_cluster,
)

IMAGE = "pgvector/pgvector:pg17"


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server, with the template database that each test clones."""

    name: str
    admin_url: str
    template: str
    workers: Sequence[str] = ()
    """The URLs of the workers of a cluster, each of which has every database too."""

    @property
    def nodes(self) -> Sequence[str]:
        return [self.admin_url, *self.workers]

    def url(self, database: str) -> str:
        return make_url(self.admin_url).set(database=database).render_as_string(hide_password=False)


@contextmanager
def running_server(features: Sequence[Feature], *, citus: bool = False) -> Iterator[Server]:
    """Finds or starts a server, or with `citus` starts a cluster; creates the template database,
    and drops it after the block.

    Raises:
        UsageError: a migration fails.
    """
    with ExitStack() as stack:
        if citus:
            yield stack.enter_context(_cluster(features))
            return
        if url := os.environ.get("APP_TEST_DATABASE_URL"):
            name = "APP_TEST_DATABASE_URL"
        elif docker_answers():
            name, url = f"container {IMAGE}", stack.enter_context(_container())
        else:
            name, url = "embedded PostgreSQL", stack.enter_context(_embedded(features))
        server = Server(name, url, f"template_{secrets.token_hex(6)}")
        asyncio.run(execute(url, f'CREATE DATABASE "{server.template}"'))
        stack.callback(lambda: asyncio.run(drop_database(url, server.template)))
        _migrate(server, features)
        yield server


@contextmanager
def _cluster(features: Sequence[Feature]) -> Iterator[Server]:
    """Starts a cluster of Citus, with a template database whose tables are distributed."""
    with running_cluster(in_memory=True) as cluster:
        coordinator, *workers = cluster.urls
        name = f"{len(cluster.urls)} containers {CITUS_IMAGE}"
        server = Server(name, coordinator, f"template_{secrets.token_hex(6)}", workers)
        asyncio.run(create_cluster_database(server.nodes, server.template))
        _migrate(server, features)
        asyncio.run(distribute_all(server.url(server.template)))
        asyncio.run(freeze_template(server.nodes, server.template))
        yield server


def _migrate(server: Server, features: Sequence[Feature]) -> None:
    try:
        upgrade(server.url(server.template), branches_of(features))
    except MigrationError as error:  # pytest prints a UsageError as one line, and ends
        raise pytest.UsageError(f"the tests need a migrated database: {error}") from None


def docker_answers() -> bool:
    """Returns whether a Docker daemon answers: the client may be installed without one."""
    import docker  # a dependency of testcontainers, needed only here

    try:
        client = docker.from_env(timeout=3)
        return bool(client.ping())
    except docker.errors.DockerException:
        return False


@contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer

    fast = "postgres -c fsync=off -c full_page_writes=off -c max_connections=200"
    container = PostgresContainer(IMAGE, driver=None).with_command(fast)
    with container.with_tmpfs_mount("/var/lib/postgresql/data"):  # in memory, like /dev/shm below
        yield container.get_connection_url()


@contextmanager
def _embedded(features: Sequence[Feature]) -> Iterator[str]:
    memory = Path("/dev/shm")  # cloning a database takes 12 ms there, not 200
    parent = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent, prefix="tessera-test-") as folder:
        Path(folder).chmod(0o755)
        with embedded_postgres(Path(folder), DISPOSABLE) as server:
            url = asyncio.run(ensure_database(server, "postgres", extensions_of(features)))
            yield f"{url}?sslmode=disable"  # else each connection asks for TLS first


async def execute(url: str, statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


async def drop_database(url: str, database: str) -> None:
    await execute(url, f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
