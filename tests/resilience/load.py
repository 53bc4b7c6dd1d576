"""Clients that write and read during a fault, and record the responses."""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import httpx

from tests.declarations import declared
from tests.kit import PASSWORD, eventually, within

CLIENTS = 6
ROWS_OF_IMPORT = 5
PAUSE_SECONDS = 0.02
CLIENT_TIMEOUT_SECONDS = 15.0
WITHIN_SECONDS = 60.0

PATHS_READ = sorted(declared("load", "PATHS_READ")) or ["/items?q={word}"]
COUNTS_OF_UNFINISHED = declared("load", "COUNTS_OF_UNFINISHED")
SELECT_STORED_ITEMS = """
SELECT item.title FROM items AS item JOIN users ON users.id = item.owner_id WHERE users.email = $1
"""


@dataclass
class Load:
    """The requests of the clients of one account, and the responses.

    A write is a tuple of titles: one for a POST, several for an import.
    """

    addresses: Sequence[str]
    email: str = field(default_factory=lambda: f"{secrets.token_hex(6)}@example.com")
    headers: dict[str, str] = field(default_factory=dict)
    attempted: list[tuple[str, ...]] = field(default_factory=list)
    acknowledged: list[tuple[str, ...]] = field(default_factory=list)
    acknowledged_at: list[float] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    """The number of responses by status; 0 stands for no response."""
    refusals: list[str] = field(default_factory=list)
    """The bodies of responses other than 2xx, and transport errors."""
    degraded: int = 0
    latencies: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0
    fault_ended_at: float = 0
    recovery: float = 0

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.answers.items() if not 200 <= status < 300)

    async def sign_up(self) -> None:
        account = {"email": self.email, "password": PASSWORD}
        form = {"grant_type": "password", "username": self.email, "password": PASSWORD}
        async with httpx.AsyncClient(base_url=self.addresses[0], timeout=30) as client:
            assert (await client.post("/users", json=account)).status_code == 201
            granted = await client.post("/auth/token", data=form)
        self.headers["Authorization"] = f"Bearer {granted.json()['access_token']}"

    def end_fault(self) -> None:
        """Marks the end of the fault.

        `recovery` is the time in seconds from here to the next acknowledged write.
        """
        self.fault_ended_at, self.recovery = time.monotonic(), 0

    async def wait_for_writes(self, writes: int = 30) -> None:
        """Waits until so many more writes have been acknowledged."""
        goal = len(self.acknowledged) + writes
        await eventually(
            lambda: len(self.acknowledged) >= goal,
            f"{writes} further acknowledged writes",
            WITHIN_SECONDS,
        )

    async def wait_for_failure(self) -> None:
        """Waits until a request of the clients fails."""
        before = self.failed
        await eventually(
            lambda: self.failed > before, "a request that fails by the fault", WITHIN_SECONDS
        )

    async def run(self, number: int) -> None:
        """Runs one client: it writes and reads, and retries failed writes with the same keys."""
        turn = number
        async with httpx.AsyncClient(
            headers=self.headers, timeout=CLIENT_TIMEOUT_SECONDS
        ) as client:
            while True:
                turn += 1
                if turn % 3 == 0:
                    await self._read(client, turn)
                else:
                    await self._write(client, turn)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _write(self, client: httpx.AsyncClient, turn: int) -> None:
        name = secrets.token_hex(8)
        importing = turn % 5 == 0
        titles = tuple(f"{name}-{n}" for n in range(ROWS_OF_IMPORT)) if importing else (name,)
        self.attempted.append(titles)
        while not await (self._import if importing else self._post)(client, turn, titles):
            turn += 1
            await asyncio.sleep(0.1)
        self.acknowledged.append(titles)
        self.acknowledged_at.append(time.monotonic())
        if self.fault_ended_at and not self.recovery:
            self.recovery = time.monotonic() - self.fault_ended_at

    async def _post(self, client: httpx.AsyncClient, turn: int, titles: tuple[str, ...]) -> bool:
        body = json.dumps({"title": titles[0], "price": 5})
        headers = {"Idempotency-Key": titles[0], "Content-Type": "application/json"}
        answer = await self._send(client, turn, "POST", "/items", body, headers)
        return answer is not None and answer.is_success

    async def _import(self, client: httpx.AsyncClient, turn: int, titles: tuple[str, ...]) -> bool:
        rows = ({"external_id": title, "title": title, "price": 5} for title in titles)
        body = "\n".join(map(json.dumps, rows))
        headers = {"Content-Type": "application/jsonl"}
        answer = await self._send(client, turn, "POST", "/items/import", body, headers)
        return answer is not None and answer.is_success

    async def _read(self, client: httpx.AsyncClient, turn: int) -> None:
        path = secrets.choice(PATHS_READ).format(word=secrets.token_hex(4))
        answer = await self._send(client, turn, "GET", path, None, {})
        if answer is not None and answer.is_success:
            self.degraded += answer.json().get("degraded") is True

    async def _send(
        self,
        client: httpx.AsyncClient,
        turn: int,
        method: str,
        path: str,
        body: str | None,
        headers: dict[str, str],
    ) -> httpx.Response | None:
        address = self.addresses[turn % len(self.addresses)]
        started = time.monotonic()
        try:
            answer = await client.request(method, address + path, content=body, headers=headers)
        except httpx.TransportError as error:
            self.answers[0] += 1
            self.refusals.append(f"{method} {path}: {error!r}")
            return None
        self.answers[answer.status_code] += 1
        if answer.is_success:
            self.latencies.append(time.monotonic() - started)
        else:
            self.refusals.append(f"{method} {path}: {answer.text}")
        return answer


@asynccontextmanager
async def under_load(*addresses: str, clients: int = CLIENTS) -> AsyncIterator[Load]:
    """Runs clients of a new account until the block ends.

    The block begins once their first 30 writes have been acknowledged.
    """
    load = Load(addresses)
    await load.sign_up()
    load.started = time.monotonic()
    running = [asyncio.create_task(load.run(number)) for number in range(clients)]
    try:
        await load.wait_for_writes()
        yield load
        for task in running:
            assert not task.done(), task.exception()
    finally:
        load.seconds = time.monotonic() - load.started
        for task in running:
            task.cancel()
        async with within(CLIENT_TIMEOUT_SECONDS, "the end of each client"):
            await asyncio.gather(*running, return_exceptions=True)


async def audit(load: Load, database_url: str) -> None:
    """Fails unless each acknowledged write is stored exactly once.

    Also fails if an import is stored in part, if background work that a feature declares is not
    finished, or if there was a 500.
    """
    acknowledged = {title for titles in load.acknowledged for title in titles}
    attempted = {title for titles in load.attempted for title in titles}
    stored = Counter(await _once_finished(load.email, database_url))
    assert acknowledged <= stored.keys(), f"{len(acknowledged - stored.keys())} writes are lost"
    assert stored.keys() <= attempted, "there is what nobody has written"
    assert max(stored.values()) == 1, "a write was done twice"
    for titles in load.attempted:
        assert len(stored.keys() & set(titles)) in {0, len(titles)}, "an import was half done"
    assert load.answers[500] == 0, load.answers


async def _once_finished(email: str, database_url: str) -> list[str]:
    """Returns the titles of the account's items, once its background work is finished."""
    connection = await asyncpg.connect(database_url)

    try:
        for what, statement in COUNTS_OF_UNFINISHED.items():

            async def none_left(statement: str = statement) -> bool:
                return bool(await connection.fetchval(statement, email) == 0)

            await eventually(none_left, f"the end of {what}", WITHIN_SECONDS)
        return [row["title"] for row in await connection.fetch(SELECT_STORED_ITEMS, email)]
    finally:
        await connection.close()
