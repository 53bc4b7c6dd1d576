"""PostgreSQL is killed, is frozen, fails over, or runs out of disk while clients write."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from tests.kit import LONG, within
from tests.resilience.conftest import Report, Stack
from tests.resilience.load import audit, under_load
from tests.resilience.servers import Proxy
from tests.serving import kill

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.verify,
]
FROZEN_SECONDS = 10.0 if LONG else 3.0


async def test_a_killed_postgresql_loses_no_acknowledged_write(
    stack: Stack, report: Report
) -> None:
    async with under_load(stack.address) as load:
        stack.postgres.signal(signal.SIGKILL)
        stack.postgres_runs.close()
        await stack.start_postgres()
        load.end_fault()
        await load.wait_for_writes()
    await audit(load, stack.database_url)
    report("PostgreSQL killed and started again", load)


async def test_a_postgresql_that_was_frozen_is_used_again(stack: Stack, report: Report) -> None:
    async with under_load(stack.address) as load:
        stack.postgres.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(FROZEN_SECONDS)  # the duration of the fault
        finally:
            stack.postgres.signal(signal.SIGCONT)
        load.end_fault()
        await load.wait_for_writes()
    await audit(load, stack.database_url)
    report(f"PostgreSQL frozen for {FROZEN_SECONDS:.0f} s", load)


@pytest.mark.long  # waits for the grace period of requests to end
async def test_an_api_ends_although_postgresql_is_frozen(stack: Stack) -> None:
    api = await stack.start_api()
    async with under_load(api.address):
        stack.postgres.signal(signal.SIGSTOP)
        try:
            await asyncio.to_thread(api.stop)  # within 30 s
        finally:
            stack.postgres.signal(signal.SIGCONT)
            kill(api)


async def test_a_postgresql_that_vanishes_without_a_word_is_given_up(
    stack: Stack, report: Report
) -> None:
    """Its machine loses power, and another takes over its address: no connection is closed."""
    way = Proxy(target=stack.proxy.target)
    listener = await way.start()
    url = stack.database_url.replace(f":{stack.proxy.port}/", f":{way.port}/")
    api = await stack.start_api(database_url=url, request_timeout="2")
    try:
        async with under_load(api.address) as load:
            way.drop_server_connections()
            load.end_fault()
            await load.wait_for_failure()
            await load.wait_for_writes()
    finally:
        kill(api)
        way.reset_connections()
        listener.close()
    await audit(load, stack.database_url)
    report("PostgreSQL vanished, with requests given up after 2 s", load)


async def test_postgresql_without_a_free_connection_is_an_outage_that_ends(
    stack: Stack, report: Report
) -> None:
    taken: list[asyncpg.Connection[asyncpg.Record]] = []
    async with under_load(stack.address) as load:
        try:
            taken.append(await asyncpg.connect(stack.database_url))
            for _ in range(3):  # the API reconnects quickly
                await taken[0].execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'tessera'"
                )
                async with within(30, "a PostgreSQL without a free connection"):
                    await _take_all(stack.database_url, taken)
            await load.wait_for_failure()
        finally:
            for connection in taken:
                connection.terminate()
        load.end_fault()
        await load.wait_for_writes()
    await audit(load, stack.database_url)
    report("PostgreSQL out of connections", load)


async def _take_all(url: str, taken: "list[asyncpg.Connection[asyncpg.Record]]") -> None:
    while True:
        try:
            taken.append(await asyncpg.connect(url))
        except asyncpg.TooManyConnectionsError:
            return


async def test_a_failover_to_another_address_is_followed(stack: Stack, report: Report) -> None:
    async with under_load(stack.address) as load:
        stack.postgres.signal(signal.SIGKILL)
        stack.postgres_runs.close()
        await load.wait_for_failure()
        await stack.start_postgres()
        stack.proxy.reset_connections()
        load.end_fault()
        await load.wait_for_writes()
    await audit(load, stack.database_url)
    report("PostgreSQL fails over to another address", load)


async def test_a_full_disk_is_an_outage_that_ends(
    stack: Stack, report: Report, small_disk: Path
) -> None:
    connection = await asyncpg.connect(stack.database_url)
    try:
        await connection.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
        await connection.execute("ALTER TABLE items SET TABLESPACE small")
        async with under_load(stack.address) as load:
            filler = small_disk / "filler"
            with suppress(OSError), filler.open("wb") as file:  # until the disk is full
                while True:
                    file.write(bytes(8192))
                    file.flush()
            await load.wait_for_failure()
            filler.unlink()
            load.end_fault()
            await load.wait_for_writes()
        await audit(load, stack.database_url)
    finally:
        await connection.execute("ALTER TABLE items SET TABLESPACE pg_default")
        await connection.execute("CHECKPOINT")  # unlinks the files of the moved table
        await connection.execute("DROP TABLESPACE IF EXISTS small")
        await connection.close()
    report("Disk full", load)


@pytest.fixture
def small_disk(stack: Stack) -> Iterator[Path]:
    disk = stack.postgres.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=30).returncode:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        folder = disk / "tablespace"
        folder.mkdir()
        shutil.chown(folder, Path(f"/proc/{stack.postgres.processes()[0]}").stat().st_uid)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=30)
