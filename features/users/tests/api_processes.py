"""Real API processes on loopback, for tests of behaviour across processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

from httpx import AsyncClient, TransportError

from features.users.tests.conftest import environment
from tests.kit import eventually, free_port, within

PROCESS_SECONDS = 60.0  # for a process to start, and to end


@asynccontextmanager
async def api_process(
    database_url: str, log: Path | None = None, **settings: str
) -> AsyncIterator[AsyncClient]:
    """Runs an API process during the block, with its log in a file, and yields a client."""
    port = str(free_port())
    with log.open("wb") if log else nullcontext() as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "app", "serve", "--until-parent-exits"),  # of the tests, if they are killed
            env=os.environ | environment(database_url) | {"PORT": port, **settings},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

            async def answers() -> bool:
                assert process.returncode is None, f"the API ended with {process.returncode}"
                with suppress(TransportError):
                    return (await client.get("/healthz")).is_success
                return False

            await eventually(answers, "the API's first answer", PROCESS_SECONDS)
            yield client
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with within(PROCESS_SECONDS, "the end of the API process"):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
