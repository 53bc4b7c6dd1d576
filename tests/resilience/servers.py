"""Servers that a test may kill, freeze and move: PostgreSQL, and the way to it."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from shared.embedded import EmbeddedServer, embedded_postgres, ensure_database

# A killed process loses nothing that it handed to the kernel, so what is durable stays durable.
SETTINGS = {"shared_buffers": "64MB", "max_connections": "60", "full_page_writes": "off"}


@dataclass
class Postgres:
    """A server of the suite's own. Each start is at another port: a `Proxy` stands before it."""

    folder: Path
    server: EmbeddedServer = field(init=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts the server, which recovers from whatever was done to it, and stops it."""
        with embedded_postgres(self.folder, SETTINGS) as self.server:
            yield

    def processes(self) -> list[int]:
        """The postmaster, then its children: a signal must reach each, as they have sessions."""
        home = self.folder if (self.folder / "data").exists() else self.folder / "server"
        postmaster = int((home / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
        return [postmaster, *map(int, children.split())]

    def signal(self, number: signal.Signals) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def postgres_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tessera-faults-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@dataclass
class Proxy:
    """A fixed address before a server that moves: what a load balancer or a DNS name is.

    With `holds`, it does not tell that one side has closed a connection."""

    port: int = 0
    target: int = 0
    holds: bool = False
    _streams: set[asyncio.StreamWriter] = field(default_factory=set)
    _to_server: set[asyncio.StreamWriter] = field(default_factory=set)
    _silent: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._to_server.add(back)
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        self._to_server.discard(back)
        writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._streams.add(sink)
        with suppress(OSError):
            while data := await source.read(65_536):
                if sink not in self._silent:
                    sink.write(data)
                    await sink.drain()
        if not self.holds and sink not in self._silent:
            sink.close()
        self._streams.discard(sink)
        self._silent.discard(sink)

    def fall_silent(self) -> None:
        """The server's sessions are gone, and whoever is connected does not hear of it."""
        self._silent |= self._streams
        for back in self._to_server:
            back.transport.abort()

    def hang_up(self) -> None:
        """Resets all connections."""
        for stream in self._streams:
            stream.transport.abort()


async def database_of(postgres: Postgres, proxy: Proxy) -> str:
    """Makes the database, and returns its URL by way of the proxy."""
    await ensure_database(postgres.server, "faults")
    proxy.target = postgres.server.port
    return EmbeddedServer(proxy.port, postgres.server.password).url("faults")
