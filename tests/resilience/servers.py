"""Servers that a test can kill, freeze and move: PostgreSQL, and a proxy in front of it."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.embedded import EmbeddedServer, embedded_postgres, ensure_database

# Killing a process loses nothing that it has handed to the operating system, so what PostgreSQL
# has made durable stays durable without full-page writes.
SETTINGS = {"shared_buffers": "64MB", "max_connections": "60", "full_page_writes": "off"}
DATABASE = "faults"


@dataclass
class Postgres:
    """A PostgreSQL server for this suite. Each start uses another port, behind a `Proxy`."""

    folder: Path
    server: EmbeddedServer = field(init=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs the server during the block; when it starts, it recovers from a crash."""
        with embedded_postgres(self.folder, SETTINGS) as self.server:
            yield

    def processes(self) -> list[int]:
        """Returns the ids of the postmaster and its children.

        Each must get its own signal, because each has its own session in the operating system.
        """
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
    """A fixed address in front of a server that moves, like a load balancer or a DNS name.

    With `hides_closing`, it does not tell one side that the other has closed the connection; while
    `frozen`, it says nothing at all.
    """

    port: int = 0
    target: int = 0
    hides_closing: bool = False
    frozen: bool = False
    _streams: set[asyncio.StreamWriter] = field(default_factory=set)
    _to_server: set[asyncio.StreamWriter] = field(default_factory=set)
    _silent: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while self.frozen:  # noqa: ASYNC110  # until the test thaws it
            await asyncio.sleep(0.02)
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
        if not self.hides_closing and sink not in self._silent:
            sink.close()
        self._streams.discard(sink)
        self._silent.discard(sink)

    def drop_server_connections(self) -> None:
        """Ends the connections to the server; those to the clients stay open and silent."""
        self._silent |= self._streams
        for back in self._to_server:
            back.transport.abort()

    def freeze(self) -> None:
        """Takes connections and says nothing, on new ones either, as a host that hangs."""
        self.frozen = True
        self._silent |= self._streams

    def thaw(self) -> None:
        self.frozen = False
        self.reset_connections()

    def reset_connections(self) -> None:
        """Resets all connections."""
        for stream in self._streams:
            stream.transport.abort()


async def database_of(postgres: Postgres, proxy: Proxy) -> str:
    """Creates the database, and returns its URL through the proxy."""
    await ensure_database(postgres.server, DATABASE)
    proxy.target = postgres.server.port
    return EmbeddedServer(proxy.port, postgres.server.password).url(DATABASE)
