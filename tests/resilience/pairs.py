"""A primary and its standby, which a test cuts off, promotes or stops."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.embedded import EmbeddedServer, embedded_postgres
from app.embedded.home import find_home, run_program

SMALL: Mapping[str, str] = {"shared_buffers": "16MB", "fsync": "off", "max_connections": "60"}


@contextmanager
def server_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tessera-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def running_primary() -> Iterator[EmbeddedServer]:
    with server_folder() as root, embedded_postgres(root, SMALL) as server:
        yield server


@contextmanager
def running_standby(primary: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """Runs a server that replays what the primary writes, until it is promoted."""
    with server_folder() as root:
        home = find_home(root)
        home.data.mkdir(mode=0o700)
        if home.account:
            os.chown(home.data, home.account["user"], home.account["group"])
        options = [f"--pgdata={home.data}", f"--dbname={primary.url()}", "--write-recovery-conf"]
        run_program(home, "pg_basebackup", *options, "--checkpoint=fast", "--no-sync")
        (home.folder / "password").write_text(primary.password)
        with embedded_postgres(root, SMALL) as server:
            yield server
