"""Clients that misbehave, and more of them than can be served."""

import asyncio
import secrets
import socket
import statistics
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.resilience.conftest import LONG, Report, Stack
from tests.resilience.load import CLIENTS, Load, audit, under_load

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
SOCKETS = 200
CAPACITY = 2 * CLIENTS  # more of them get no more done
OVERLOAD_SECONDS = 30.0 if LONG else 3.0
GIGABYTE = 1_000_000_000
MEGABYTE = b"x" * 1_000_000
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close sends RST


async def test_half_open_and_slow_connections_do_not_stop_the_others(
    stack: Stack, report: Report
) -> None:
    address = ("127.0.0.1", int(stack.address.rsplit(":", 1)[1]))
    held = [socket.create_connection(address) for _ in range(SOCKETS)]
    try:
        async with under_load(stack.address) as load:
            for number, connection in enumerate(held[: SOCKETS // 2]):
                connection.sendall(b"POST /items HTTP/1.1\r\nHost: slow\r\nX-Slow: %d" % number)
            for connection in held[: SOCKETS // 2]:
                connection.sendall(b"0")  # slowloris: a byte now and then
            for connection in held[::3]:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.close()
            load.heal()
            await load.goes_on()
    finally:
        for connection in held:
            connection.close()
    await audit(load, stack.database_url)
    assert load.failed == 0, load.answers
    report(f"{SOCKETS} half-open and slow connections", load)


async def test_an_aborted_import_leaves_nothing(stack: Stack, report: Report) -> None:
    marker = secrets.token_hex(8)
    async with under_load(stack.address) as load:
        for _ in range(10):
            await _abort_import(stack.address, load, marker)
        load.heal()
        await load.goes_on()
    await audit(load, stack.database_url)
    assert load.failed == 0, load.answers
    connection = await asyncpg.connect(stack.database_url)
    try:
        aborted = "SELECT count(*) FROM items WHERE title LIKE $1 || '%'"
        assert await connection.fetchval(aborted, marker) == 0
    finally:
        await connection.close()
    report("10 imports aborted in the middle", load)


async def _abort_import(address: str, load: Load, marker: str) -> None:
    class Aborted(Exception):
        pass

    async def rows() -> AsyncIterator[bytes]:
        for number in range(2_000):
            yield b'{"title": "%s %d", "price": 5}\n' % (marker.encode(), number)
        raise Aborted

    headers = load.headers | {"Content-Type": "application/jsonl"}
    async with httpx.AsyncClient(base_url=address, headers=headers) as client:
        with pytest.raises(Aborted):
            await client.post("/items/import", content=rows())


async def test_a_body_of_a_gigabyte_is_refused_and_never_held(stack: Stack, report: Report) -> None:
    async def gigabyte() -> AsyncIterator[bytes]:
        for _ in range(GIGABYTE // len(MEGABYTE)):
            yield MEGABYTE

    before = _peak_memory(stack)
    async with under_load(stack.address) as load:
        headers = load.headers | {"Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=stack.address, headers=headers) as client:
            with suppress(httpx.WriteError):  # closed on us while we were still sending
                answer = await client.post("/items", content=gigabyte())
                assert answer.status_code == 413
        load.heal()
        await load.goes_on()
    await audit(load, stack.database_url)
    assert load.failed == 0, load.answers
    assert _peak_memory(stack) - before < GIGABYTE // 5
    report("A body of 1 GB", load)


def _peak_memory(stack: Stack) -> int:
    """The most that the API has held so far, in bytes."""
    status = Path(f"/proc/{stack.apis[0].process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def test_overload_is_shed_and_recovered_from(stack: Stack, report: Report) -> None:
    async with under_load(stack.address, clients=CAPACITY) as peak:
        await asyncio.sleep(OVERLOAD_SECONDS)
    before = _peak_memory(stack)
    async with under_load(stack.address, clients=3 * CAPACITY) as load:
        await asyncio.sleep(OVERLOAD_SECONDS)
    grown = (_peak_memory(stack) - before) / 1_000_000
    await audit(load, stack.database_url)
    assert load.answers.keys() <= {200, 201, 429, 503}, load.answers
    async with under_load(stack.address) as after:
        await after.goes_on()
    assert after.failed == 0, after.answers
    goodput = len(load.latencies) / load.seconds / (len(peak.latencies) / peak.seconds)
    p95 = 1000 * statistics.quantiles(load.latencies, n=20)[-1]
    report(
        f"Three times the peak's load for {OVERLOAD_SECONDS:.0f} s: goodput {goodput:.0%}"
        f" of the peak's, p95 {p95:.0f} ms, memory +{grown:.0f} MB",
        load,
    )
