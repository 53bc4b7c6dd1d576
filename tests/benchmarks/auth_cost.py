"""Measures the cost of authentication: `GET /items/{id}` with each kind of credential, without
verification, and with a database query per request, which the service avoids.

python -m tests.benchmarks.auth_cost
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

import httpx
import uvicorn
from fastapi import FastAPI

from app.main import create_app
from features.users.access_tokens.revocation_list import RevocationList
from shared.auth import Principal
from shared.settings import Settings, load_settings
from tests.benchmarks.common import migrated_database, save
from tests.kit import PASSWORD

CONNECTIONS = 8
ROUNDS = 9
ROUND_SECONDS = 1.0
EMAIL = "ada@example.com"
BELIEVED, TOKEN, KEY, QUERY = (
    "any, believed",
    "access token",
    "API key",
    "access token, a query each",
)
TICKS = os.sysconf("SC_CLK_TCK")


def serve(variant: str, port: int, owner: str) -> None:
    """Runs one server. With `BELIEVED` it accepts every credential as the owner's."""
    app = create_app(load_settings(Settings), run_tasks=False)
    if variant == BELIEVED:
        principal = Principal(UUID(owner), frozenset({"items:read"}))

        async def believe(_app: FastAPI, _credential: str) -> Principal:
            return principal

        app.state.authenticator = replace(app.state.authenticator, authenticate=believe)
    if variant == QUERY:
        RevocationList.fresh = property(lambda _: False)  # type: ignore[assignment,method-assign]  # forces a query per request
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_config=None, access_log=False)


@dataclass
class Server:
    """A server process, and its measurements, one per round."""

    port: int
    process: subprocess.Popen[bytes]
    request: bytes = b""
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """Returns the user and system time so far, from the kernel (proc(5))."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def server(settings: Settings, variant: str, port: int, owner: str) -> Iterator[Server]:
    assert settings.database_url
    assert settings.secret_key
    environment = os.environ | {
        "APP_ENV": "test",
        "APP_DATABASE_URL": settings.database_url,
        "APP_SECRET_KEY": settings.secret_key.get_secret_value(),
        "APP_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", __spec__.name, variant, str(port), owner]
    process = subprocess.Popen(command, env=environment)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield Server(port, process)
    finally:
        process.terminate()
        process.wait()


async def ask(port: int, request: bytes, until: float) -> int:
    """Sends the request repeatedly over one connection, and returns the number of answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count = 0
    while time.perf_counter() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        count += 1
    writer.close()
    return count


async def measure(server: Server) -> None:
    started, cpu = time.perf_counter(), server.cpu_seconds()
    asking = (ask(server.port, server.request, started + ROUND_SECONDS) for _ in range(CONNECTIONS))
    count = sum(await asyncio.gather(*asking))
    server.rates.append(count / (time.perf_counter() - started))
    server.cpu.append((server.cpu_seconds() - cpu) / count * 1e6)


@asynccontextmanager
async def prepared(settings: Settings) -> AsyncIterator[tuple[str, str, dict[str, str]]]:
    """Creates an account with an item; yields its id, the item's path, and a header for each
    credential."""
    app = create_app(settings, run_tasks=False)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        account = {"email": EMAIL, "password": PASSWORD}
        owner = (await client.post("/users", json=account)).json()["id"]
        form = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
        token = (await client.post("/auth/token", data=form)).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        body = {"name": "benchmark", "scopes": ["items:read"]}
        key = (await client.post("/users/me/api-keys", json=body)).json()["key"]
        item = await client.post("/items", json={"title": "Mug", "price": 12.5})
        bearer = f"Authorization: Bearer {token}\r\n"
        headers = {BELIEVED: bearer, TOKEN: bearer, KEY: f"X-API-Key: {key}\r\n", QUERY: bearer}
        yield owner, item.headers["location"], headers


async def compare(settings: Settings) -> dict[str, Server]:
    async with prepared(settings) as (owner, path, headers):
        with ExitStack() as stack:
            servers = {
                variant: stack.enter_context(server(settings, variant, 18_500 + i, owner))
                for i, variant in enumerate(headers)
            }
            for variant, header in headers.items():
                request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"
                servers[variant].request = request.encode()
            for round_ in range(ROUNDS + 1):
                for measured in servers.values():
                    await measure(measured)
                    if round_ == 0:  # discards the warm-up round
                        measured.rates.clear()
                        measured.cpu.clear()
            return servers


def main() -> None:
    with migrated_database() as settings:
        servers = asyncio.run(compare(settings))
    save("auth_cost", {name: {"rates": s.rates, "cpu": s.cpu} for name, s in servers.items()})
    rate = {name: statistics.median(measured.rates) for name, measured in servers.items()}
    cpu = {name: statistics.median(measured.cpu) for name, measured in servers.items()}
    print(
        f"GET /items/{{id}}, {CONNECTIONS} connections, one worker, median of {ROUNDS} rounds\n\n"
        "| credential | requests/s | of believed | CPU µs a request | more than believed |\n"
        "|---|---|---|---|---|"
    )
    for name in servers:
        print(
            f"| {name} | {rate[name]:,.0f} | {rate[name] / rate[BELIEVED]:.2f}"
            f" | {cpu[name]:,.0f} | {cpu[name] - cpu[BELIEVED]:+,.0f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    else:
        main()
