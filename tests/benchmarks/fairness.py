"""Measures the time of a quiet account's requests while others make noise.

python -m tests.benchmarks.fairness [SECONDS]

One worker of the real server, without rate limits: this measures how slots are shared. The
noise comes from another process, which shares the cores with the server and PostgreSQL.
"""

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Process
from urllib.parse import urlencode

import httpx
from fastapi import FastAPI

from app.main import create_app
from app.task_runner import run_until_idle
from shared.settings import Settings
from tests.benchmarks.common import migrated_database, save
from tests.benchmarks.endpoints import DEMO, OURS, served
from tests.declarations import declared
from tests.kit import PASSWORD, connect, sign_in

PORT = 18_630
PROXIES = '["127.0.0.1"]'  # so that the noise may come from many addresses
QUIET_ITEMS, LARGE_ITEMS = 500, 300
LARGE_BYTES = 10_000
ADDRESSES = 16
SIGN_INS, SEARCHES, SLOW_BODIES, STREAMS = 256, 40, 256, 5
QUERY_WORDS = 90
TIMED = {"GET /items": "/items?limit=20", **declared("load", "PATHS_TIMED")}
WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("mp", "rn", "st", "lt", "nd")]
SLOW_SECONDS = 0.5  # between the pieces of what trickles
AGAIN_SECONDS = 0.05  # an attacker would not wait; this one shares the cores with the service


@dataclass(frozen=True)
class Accounts:
    """The tokens of a quiet account, and of a noisy one whose items are large."""

    quiet: str
    noisy: str


@dataclass
class Waits:
    """The seconds until each answer, by the name of the request, and how many were refused."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TIMED})
    refused: int = 0


async def prepare(settings: Settings) -> Accounts:
    app = create_app(settings, run_tasks=False)
    demo = [json.loads(line) for line in DEMO.read_text().splitlines()]
    small = [demo[n % len(demo)] | {"external_id": str(n)} for n in range(QUIET_ITEMS)]
    large = [
        {"title": f"Item {n}", "price": 1, "description": _words(n)} for n in range(LARGE_ITEMS)
    ]
    async with app.router.lifespan_context(app):
        tokens = [
            await _account(app, email, items)
            for email, items in (("quiet@example.com", small), ("noisy@example.com", large))
        ]
        for task in app.state.tasks:
            await run_until_idle(app, task)
    return Accounts(*tokens)


def _words(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=LARGE_BYTES // 5))[:LARGE_BYTES]


async def _account(app: FastAPI, email: str, items: list[dict[str, object]]) -> str:
    async with connect(app, timeout=600) as client:
        await sign_in(app, client, email)
        lines = "\n".join(json.dumps(item) for item in items)
        headers = {"Content-Type": "application/jsonl"}
        report = await client.post("/items/import", content=lines, headers=headers)
        assert report.json()["created"] == len(items), report.text
        form = {"grant_type": "password", "username": email, "password": PASSWORD}
        return str((await client.post("/auth/token", data=form)).json()["access_token"])


class Wire:
    """Sends requests over raw sockets, which takes little of the machine."""

    def __init__(self, token: str | None = None) -> None:
        self.head = f"Host: tessera\r\nAuthorization: Bearer {token}" if token else "Host: tessera"

    async def send(self, request: str, headers: str, body: AsyncIterator[bytes]) -> None:
        """Sends one request, and reads the answer to its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        try:
            head = f"{request} HTTP/1.1\r\n{self.head}\r\nConnection: close\r\n{headers}\r\n\r\n"
            writer.write(head.encode())
            async for piece in body:
                writer.write(piece)
                await writer.drain()
            await reader.read()
        finally:
            writer.close()


async def whole(text: str = "") -> AsyncIterator[bytes]:
    yield text.encode()


async def trickle(piece: str) -> AsyncIterator[bytes]:
    while True:
        yield piece.encode()
        await asyncio.sleep(SLOW_SECONDS)


async def wrong_sign_ins(number: int, _accounts: Accounts) -> None:
    address = f"X-Forwarded-For: 203.0.113.{number % ADDRESSES}"
    form = {"grant_type": "password", "username": "quiet@example.com", "password": "a wrong one"}
    body = urlencode(form)
    headers = f"{address}\r\nContent-Type: application/x-www-form-urlencoded"
    await Wire().send("POST /auth/token", f"{headers}\r\nContent-Length: {len(body)}", whole(body))


async def heavy_searches(_number: int, accounts: Accounts) -> None:
    query = urlencode({"q": " ".join(random.choices(WORDS, k=QUERY_WORDS))})
    await Wire(accounts.noisy).send(f"GET /search?{query}", "Accept: */*", whole())


async def slow_bodies(_number: int, accounts: Accounts) -> None:
    headers = "Content-Type: application/json\r\nContent-Length: 1000"
    await Wire(accounts.noisy).send("POST /items", headers, trickle(" "))


async def slow_imports_and_exports(number: int, accounts: Accounts) -> None:
    wire = Wire(accounts.noisy)
    if number % 2:
        headers = "Content-Type: application/jsonl\r\nTransfer-Encoding: chunked"
        line = '{"title": "Mug", "price": 1}\n'
        chunk = f"{len(line):x}\r\n{line}\r\n"
        await wire.send("POST /items/import", headers, trickle(chunk))
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT, limit=1024)
        writer.write(f"GET /items/export HTTP/1.1\r\n{wire.head}\r\n\r\n".encode())
        piece = await reader.read(1024)
        while piece:
            await asyncio.sleep(SLOW_SECONDS)
            piece = await reader.read(1024)
        writer.close()


Noise = Callable[[int, Accounts], Awaitable[None]]
NOISES: dict[str, tuple[int, Noise | None]] = {
    "none": (0, None),
    f"wrong sign-ins: {SIGN_INS} connections, {ADDRESSES} addresses": (SIGN_INS, wrong_sign_ins),
    f"searches of {QUERY_WORDS} words: {SEARCHES} connections of one account": (
        SEARCHES,
        heavy_searches,
    ),
    f"bodies that trickle: {SLOW_BODIES} connections of one address": (SLOW_BODIES, slow_bodies),
    f"{STREAMS} imports and {STREAMS} exports that trickle": (
        2 * STREAMS,
        slow_imports_and_exports,
    ),
}


@contextmanager
def noise(connections: int, make: Noise | None, accounts: Accounts) -> Iterator[None]:
    """Makes a noise with so many connections in another process."""
    if make is None:
        yield
        return
    process = Process(target=_make_noise, args=(connections, make, accounts))
    process.start()
    try:
        time.sleep(2)
        yield
    finally:
        process.terminate()
        process.join()


def _make_noise(connections: int, make: Noise, accounts: Accounts) -> None:
    async def again_and_again(number: int) -> None:
        while True:
            with suppress(OSError):
                await make(number, accounts)
            await asyncio.sleep(AGAIN_SECONDS)

    async def everything() -> None:
        await asyncio.gather(*(again_and_again(number) for number in range(connections)))

    asyncio.run(everything())


def listen_to(accounts: Accounts, seconds: float) -> Waits:
    """Sends the quiet account's requests in turn, as one client that waits for each answer."""
    waits, until = Waits(), time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {accounts.quiet}", "X-Forwarded-For": "198.51.100.7"}
    address = f"http://127.0.0.1:{PORT}"
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        while time.monotonic() < until:
            for name, path in TIMED.items():
                started = time.perf_counter()
                answer = client.get(path)
                if answer.is_success:
                    waits.seconds[name].append(time.perf_counter() - started)
                else:
                    waits.refused += 1
            time.sleep(0.02)
    return waits


def cells(waits: Waits) -> list[str]:
    answered = sum(map(len, waits.seconds.values()))
    refused = f"{waits.refused} of {waits.refused + answered}"
    return [*(percentiles(seconds) for seconds in waits.seconds.values()), refused]


def percentiles(seconds: list[float]) -> str:
    """Returns the median and the 95th percentile, in ms."""
    if len(seconds) < 2:
        return "no answer"
    p50, p95 = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
    return f"{p50 * 1000:,.0f}, {p95 * 1000:,.0f}"


def main(seconds: float = 10) -> None:
    found = {}
    with migrated_database() as settings:
        accounts = asyncio.run(prepare(settings))
        print(f"ms until the answer, p50 and p95\n\n| noise | {' | '.join(TIMED)} | refused |")
        print("|---" * (len(TIMED) + 2) + "|")
        for name, (connections, make) in NOISES.items():
            with (
                served(OURS, settings, PORT, APP_TRUSTED_PROXIES=PROXIES),
                noise(connections, make, accounts),
            ):
                waits = listen_to(accounts, seconds)
            print(f"| {name} | {' | '.join(cells(waits))} |", flush=True)
            found[name] = waits.seconds
    save("fairness", found)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
