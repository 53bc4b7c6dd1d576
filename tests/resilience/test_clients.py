"""Clients misbehave, or send more requests than can be served."""

import asyncio
import re
import secrets
import socket
import statistics
import struct
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.kit import LONG, eventually, within
from tests.resilience.conftest import Report, Stack
from tests.resilience.load import CLIENT_TIMEOUT_SECONDS, Load, audit, under_load
from tests.resilience.servers import DATABASE
from tests.serving import Served, kill

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    pytest.mark.verify,
]
SOCKETS = 200  # as many as there may be requests under way
HEAD_OF_LONG_BODY = (
    b"POST /items HTTP/1.1\r\nHost: slow\r\nContent-Type: application/json\r\n"
    b"Content-Length: 900000\r\n\r\n"
)
CONCURRENCY = 16  # more would not raise the throughput on two cores
OVERLOAD = 3
OVERLOAD_SECONDS = 30.0 if LONG else 3.0
MIN_GOODPUT = 0.8 if LONG else 0.1  # the speed of a shared machine varies
MAX_GROWTH_MB = 100
RECOVERY_SECONDS = 5.0
GIGABYTE = 1_000_000_000
MEGABYTE = b"x" * 1_000_000
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close sends RST


async def test_half_open_and_slow_connections_do_not_stop_the_others(
    stack: Stack, report: Report
) -> None:
    address = ("127.0.0.1", int(stack.address.rsplit(":", 1)[1]))
    held = [socket.create_connection(address, timeout=30) for _ in range(3 * SOCKETS)]
    heads, bodies = held[:SOCKETS], held[SOCKETS : 2 * SOCKETS]
    try:
        async with under_load(stack.address) as load:
            for number, connection in enumerate(heads):
                connection.sendall(b"POST /items HTTP/1.1\r\nHost: slow\r\nX-Slow: %d" % number)
            for connection in heads:
                connection.sendall(b"0")  # slowloris: one byte at a time
            for connection in bodies:
                connection.sendall(HEAD_OF_LONG_BODY + b"{")
            for connection in bodies[::2]:
                connection.sendall(b" " * 100_000)
            for connection in held[::3]:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.close()
            load.end_fault()
            await load.wait_for_writes()
    finally:
        for connection in held:
            connection.close()
    await audit(load, stack.database_url)
    assert load.failed == 0, load.answers
    report(f"{3 * SOCKETS} half-open and slow connections", load)


async def test_an_aborted_import_leaves_nothing(stack: Stack, report: Report) -> None:
    marker = secrets.token_hex(8)
    async with under_load(stack.address) as load:
        for _ in range(10):
            await _abort_import(stack.address, load, marker)
        load.end_fault()
        await load.wait_for_writes()
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
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=30) as client:
        with pytest.raises(Aborted):
            await client.post("/items/import", content=rows())


async def test_a_body_of_a_gigabyte_is_refused_and_never_held(stack: Stack, report: Report) -> None:
    async def gigabyte() -> AsyncIterator[bytes]:
        for _ in range(GIGABYTE // len(MEGABYTE)):
            yield MEGABYTE

    before = _peak_memory(stack.apis[0])
    async with under_load(stack.address) as load:
        headers = load.headers | {"Content-Type": "application/json"}
        async with httpx.AsyncClient(base_url=stack.address, headers=headers, timeout=30) as client:
            with suppress(httpx.WriteError):  # the server closed while we were still sending
                answer = await client.post("/items", content=gigabyte())
                assert answer.status_code == 413
        load.end_fault()
        await load.wait_for_writes()
    await audit(load, stack.database_url)
    assert load.failed == 0, load.answers
    assert _peak_memory(stack.apis[0]) - before < GIGABYTE // 5
    report("A body of 1 GB", load)


def _peak_memory(api: Served) -> int:
    """Returns the API's peak memory so far, in bytes."""
    status = Path(f"/proc/{api.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def test_overload_is_shed_and_recovered_from(stack: Stack, report: Report) -> None:
    # Not through the proxy: it runs in this process, and is the slower the more the clients do.
    url = stack.postgres.server.url(DATABASE)
    # A lone account has half of the slots.
    api = await stack.start_api(database_url=url, max_concurrency=str(2 * CONCURRENCY))
    try:
        peak, load = [await _signed_up(api) for _ in range(2)]
        await _as_much_as_can_be(peak)
        before = _peak_memory(api)
        rate = OVERLOAD * len(peak.acknowledged) / peak.seconds
        retry_after = await _at_a_rate(load, rate)
        grown = (_peak_memory(api) - before) / 1_000_000
        served = len(load.acknowledged)
        load.end_fault()
        wire = Wire(load)
        await eventually(wire.write, "a write after the overload", RECOVERY_SECONDS)
        load.recovery = time.monotonic() - load.fault_ended_at
    finally:
        kill(api)
    await audit(load, stack.database_url)
    assert load.answers.keys() == {201, 429}, load.answers
    assert all(retry_after)
    assert grown < MAX_GROWTH_MB
    goodput = served / load.seconds / (len(peak.acknowledged) / peak.seconds)
    p95, of_peak = [statistics.quantiles(each.latencies, n=20)[-1] for each in (load, peak)]
    assert goodput >= MIN_GOODPUT
    report(
        f"{OVERLOAD} times as many requests as can be served, for {OVERLOAD_SECONDS:.0f} s:"
        f" {goodput:.0%} of the peak got through, p95 {p95:.2f} s (at the peak {of_peak:.2f} s),"
        f" memory +{grown:.0f} MB",
        load,
    )


async def _signed_up(api: Served) -> Load:
    load = Load([api.address])
    await load.sign_up()
    return load


class Wire:
    """Writes over raw sockets: httpx would use more of the machine than the service does."""

    def __init__(self, load: Load) -> None:
        self.load, self.url = load, httpx.URL(load.addresses[0])
        self.retry_after: list[bytes | None] = []
        """The `Retry-After` header of each refusal."""
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def write(self) -> bool:
        """Sends one write, and returns whether it was acknowledged; does not retry."""
        title, started = secrets.token_hex(8), time.monotonic()
        self.load.attempted.append((title,))
        async with within(CLIENT_TIMEOUT_SECONDS, "the answer to a write"):
            head = await self._post(f'{{"title": "{title}", "price": 5}}', title)
        status = int(head.split(b" ", 2)[1])
        self.load.answers[status] += 1
        if status == 201:
            self.load.acknowledged.append((title,))
            self.load.latencies.append(time.monotonic() - started)
        else:
            self.retry_after.append(_value(head, b"retry-after"))
        return status == 201

    async def _post(self, body: str, key: str) -> bytes:
        """Sends a POST over an idle or a new connection, and returns the head of the response.

        If the server closed a connection while it was idle, tries the next one.
        """
        headers = self.load.headers | {"Host": self.url.host, "Idempotency-Key": key}
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"POST /items HTTP/1.1\r\n{lines}\r\n{body}".encode()
        while self._idle:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                return await self._exchange(request, *self._idle.pop())
        opened = await asyncio.open_connection(self.url.host, self.url.port)
        return await self._exchange(request, *opened)

    async def _exchange(
        self, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(_value(head, b"content-length") or 0))
        self._idle.append((reader, writer))
        return head


def _value(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"\r\n" + name + rb": ([^\r]*)", head, re.IGNORECASE)
    return found[1] if found else None


async def _as_much_as_can_be(load: Load) -> None:
    """Runs a closed loop: `CONCURRENCY` clients, each of which writes again once it is answered."""

    wire = Wire(load)

    async def go_on() -> None:
        while time.monotonic() < load.started + OVERLOAD_SECONDS:
            await wire.write()

    await wire.write()
    load.started = time.monotonic()
    await asyncio.gather(*(go_on() for _ in range(CONCURRENCY)))
    load.seconds = time.monotonic() - load.started


async def _at_a_rate(load: Load, per_second: float) -> list[bytes | None]:
    """Runs an open loop: starts requests at this rate, whether earlier ones were answered or not.

    Returns the `Retry-After` header of each refusal.
    """
    wire = Wire(load)
    async with asyncio.TaskGroup() as group:
        load.started = time.monotonic()
        for number in range(round(per_second * OVERLOAD_SECONDS)):
            await asyncio.sleep(load.started + number / per_second - time.monotonic())
            group.create_task(wire.write())
    load.seconds = time.monotonic() - load.started
    return wire.retry_after
