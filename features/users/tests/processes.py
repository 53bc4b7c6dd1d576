"""Real API processes on loopback, for what must hold between processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from httpx import AsyncClient, TransportError

from features.users.tests.conftest import environment
from shared.testing import free_port

START_TIMEOUT_SECONDS = 60


@asynccontextmanager
async def api_process(
    database_url: str, log: Path | None = None, **settings: str
) -> AsyncIterator[AsyncClient]:
    """A client of an API process that runs as long as the block, and writes its log to a file."""
    port = str(free_port())
    with log.open("wb") if log else nullcontext() as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "app", "serve"),
            env=os.environ | environment(database_url) | {"PORT": port, **settings},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        async with AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                await _answers(client)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _answers(client: AsyncClient) -> None:
    while True:
        try:
            await client.get("/healthz")
        except TransportError:
            await asyncio.sleep(0.05)
        else:
            return
