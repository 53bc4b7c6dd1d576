"""Measures requests per second of each endpoint, against a bare server and the textbook layering.

python -m tests.benchmarks.endpoints [SECONDS [ROUNDS]]

Each server is a separate process with one worker on the same database. wrk loads one after the
other in each round, so that other load on the machine affects all of them.
"""

import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from app.main import create_app
from app.task_runner import run_until_idle
from shared.settings import Settings
from tests.benchmarks.common import ROOT, migrated_database, save
from tests.declarations import declared
from tests.kit import PASSWORD, connect, sign_in

CONNECTIONS = 16
ITEMS = 2_000
TICKS = os.sysconf("SC_CLK_TCK")
OURS, BARE, GUIDELINE = "tessera", "bare", "guideline"
SERVERS = (OURS, BARE, GUIDELINE)
WRK = """
wrk.method = "{method}"
wrk.body = {body}
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {token}"
{more}
"""


@dataclass(frozen=True)
class Endpoint:
    name: str
    path: str
    method: str = "GET"
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    guideline: bool = True
    connections: int = CONNECTIONS


@dataclass
class Server:
    """A server, and its measurements of each round by endpoint: requests/s, CPU µs per request."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    seconds_to_start: float
    rates: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        """Returns the user and system time so far, from the kernel (proc(5))."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def megabytes(self) -> float:
        (rss,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(rss) / 1024


@contextmanager
def served(
    name: str, settings: Settings, port: int, workers: int = 1, **variables: str
) -> Iterator[Server]:
    """Runs a server in a separate process, with these variables in its environment."""
    assert settings.database_url
    environment = os.environ | {
        "APP_ENV": "dev",
        "APP_DATABASE_URL": settings.database_url,
        "APP_SECRET_KEY": settings.secret(),
        "APP_LOG_FORMAT": "json",
        "APP_RATE_LIMITING": "false",
        **variables,
    }
    module = f"tests.benchmarks.{name}"
    if name == OURS:
        arguments = [module, str(port), str(workers)]
    else:
        arguments = ["uvicorn", f"{module}:app", "--port", str(port), "--workers", "1"]
        arguments += ["--loop", "uvloop", "--http", "httptools", "--no-server-header"]
    if name == BARE:
        arguments += ["--no-access-log", "--log-level", "warning"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, f"{name} does not start"
            try:
                httpx.get(f"{address}/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.02)
        yield Server(name, address, process, time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait()


def load(server: Server, endpoint: Endpoint, token: str, seconds: float) -> None:
    """Runs one round; records the rate that wrk reports and the CPU time from the kernel."""
    more = "".join(f'wrk.headers["{n}"] = {json.dumps(v)}\n' for n, v in endpoint.headers.items())
    body = json.dumps(endpoint.body) if endpoint.body else "nil"
    script = WRK.format(method=endpoint.method, body=body, token=token, more=more)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{endpoint.connections}", f"-d{seconds}s", "-s", file.name]
        before = server.cpu_seconds()
        done = subprocess.run(
            [*command, server.address + endpoint.path], capture_output=True, text=True, check=True
        )
    assert "Non-2xx" not in done.stdout, (server.name, endpoint.name, done.stdout)
    requests = int(re.search(r"(\d+) requests in", done.stdout)[1])  # type: ignore[index]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)[1])  # type: ignore[index]
    server.rates.setdefault(endpoint.name, []).append(rate)
    microseconds = (server.cpu_seconds() - before) / max(1, requests) * 1e6
    server.cpu.setdefault(endpoint.name, []).append(microseconds)


async def prepare(settings: Settings) -> tuple[str, list[Endpoint]]:
    """Creates an account with items, all embedded; returns its token and the endpoints."""
    app = create_app(settings, run_tasks=False)
    async with app.router.lifespan_context(app), connect(app, timeout=600) as client:
        await sign_in(app, client, "bench@example.com")
        demo = [json.loads(line) for line in DEMO.read_text().splitlines()]
        rows = [
            demo[n % len(demo)] | {"external_id": str(n), "price": 1 + n % 500}
            for n in range(ITEMS)
        ]
        lines = "\n".join(json.dumps(row) for row in rows)
        headers = {"Content-Type": "application/jsonl"}
        report = await client.post("/items/import", content=lines, headers=headers)
        assert report.json()["created"] == ITEMS, report.text
        for task in app.state.tasks:
            await run_until_idle(app, task)
        item = (await client.get("/items?limit=1")).json()["items"][0]["id"]
        tag = (await client.get(f"/items/{item}")).headers["etag"]
        form = {"grant_type": "password", "username": "bench@example.com", "password": PASSWORD}
        token = (await client.post("/auth/token", data=form)).json()["access_token"]
    create = '{"title": "Enamel mug", "price": 12.5}'
    urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
    # Few connections: a password whose client has gone is hashed all the same, and its slot would
    # be missing in the next round
    signing_in = Endpoint(
        "POST /auth/token", "/auth/token", "POST", urlencode(form), urlencoded, False, 4
    )
    return token, [
        Endpoint("GET /items/{id}", f"/items/{item}"),
        Endpoint(
            "… If-None-Match", f"/items/{item}", headers={"If-None-Match": tag}, guideline=False
        ),
        Endpoint("GET /items?limit=20", "/items?limit=20"),
        Endpoint("… total=false", "/items?limit=20&total=false", guideline=False),
        *(
            Endpoint(name, path, guideline=False)
            for name, path in declared("load", "PATHS_TIMED").items()
        ),
        Endpoint("GET /items/export, 2,000 items", "/items/export", guideline=False),
        Endpoint("PATCH /items/{id}", f"/items/{item}", "PATCH", '{"price": 9.5}'),
        Endpoint("POST /items", "/items", "POST", create),
        signing_in,
    ]


DEMO = ROOT / "features" / "items" / "demo.jsonl"


def measure(settings: Settings, seconds: float, rounds: int) -> tuple[list[Endpoint], list[Server]]:
    token, endpoints = asyncio.run(prepare(settings))
    with ExitStack() as stack:
        servers = [
            stack.enter_context(served(name, settings, 18_600 + n))
            for n, name in enumerate(SERVERS)
        ]
        _sign_in_once(servers[0].address, endpoints[-1])
        for endpoint in endpoints:
            asked = [s for s in servers if endpoint.guideline or s.name != GUIDELINE]
            for round_ in range(rounds + 1):
                for server in asked:
                    load(server, endpoint, token, seconds)
                    if round_ == 0:  # discards the warm-up round
                        server.rates[endpoint.name].clear()
                        server.cpu[endpoint.name].clear()
        memory = {server.name: server.megabytes() for server in servers}
    show(endpoints, servers, memory)
    return endpoints, servers


def _sign_in_once(address: str, signing_in: Endpoint) -> None:
    """Signs in before the measurement: the first sign-in rehashes the password, whose hash has the
    low cost of the tests."""
    url = address + signing_in.path
    httpx.post(url, content=signing_in.body, headers=signing_in.headers).raise_for_status()


def ratios(ours: list[float], theirs: list[float]) -> str:
    """Formats the median of the rounds' ratios, with the minimum and the maximum."""
    each = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"{statistics.median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})"


def show(endpoints: list[Endpoint], servers: list[Server], memory: Mapping[str, float]) -> None:
    by_name = {server.name: server for server in servers}
    ours, bare, guideline = (by_name[name] for name in SERVERS)
    print("| endpoint | requests/s | of bare | of guideline | CPU µs: ours, bare, guideline |")
    print("|---|---|---|---|---|")
    found: dict[str, Any] = {}
    for endpoint in endpoints:
        name = endpoint.name
        of_bare = ratios(ours.rates[name], bare.rates[name])
        textbook = name in guideline.rates
        of_guideline = ratios(ours.rates[name], guideline.rates[name]) if textbook else ""
        cpu = [f"{statistics.median(s.cpu[name]):,.0f}" for s in servers if name in s.cpu]
        rate = statistics.median(ours.rates[name])
        print(f"| `{name}` | {rate:,.0f} | {of_bare} | {of_guideline} | {', '.join(cpu)} |")
        found[name] = {
            s.name: {"rates": s.rates.get(name), "cpu": s.cpu.get(name)} for s in servers
        }
    print("\n| | " + " | ".join(SERVERS) + " |\n|---|---|---|---|")
    print("| memory, MB | " + " | ".join(f"{memory[s.name]:.0f}" for s in servers) + " |")
    starts = (f"{server.seconds_to_start:.1f}" for server in servers)
    print("| s to the first answer | " + " | ".join(starts) + " |")
    save("endpoints", found)


def main(seconds: float = 2, rounds: int = 5) -> None:
    if shutil.which("wrk") is None:
        print("endpoints: there is no wrk (apt-get install wrk)")
        return
    with migrated_database() as settings:
        measure(settings, seconds, rounds)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
