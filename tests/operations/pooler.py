"""A pgbouncer in transaction mode, where each transaction may use a different server connection."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.kit import Server, free_port, wait_until

CONNECTIONS = 2  # from pgbouncer to PostgreSQL, shared by all clients
WITHIN_SECONDS = 60.0
CONFIGURATION = """
[databases]
* = host={url.host} port={url.port} user={url.username} password={url.password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 500
"""


@pytest.fixture(scope="module")
def pooler(server: Server) -> Iterator[int]:
    """Runs a pgbouncer in front of the server under test, and yields its port."""
    if shutil.which("pgbouncer") is None:
        pytest.skip("there is no pgbouncer")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tessera-test-") as folder:
        Path(folder).chmod(0o755)  # pgbouncer does not run as root
        file = Path(folder) / "pgbouncer.ini"
        url = make_url(server.admin_url)
        file.write_text(CONFIGURATION.format(url=url, port=port, connections=CONNECTIONS))
        account = ["--user=nobody"] if os.geteuid() == 0 else []
        process = subprocess.Popen(["pgbouncer", "--quiet", *account, str(file)])
        try:

            def listens() -> bool:
                assert process.poll() is None, f"pgbouncer ended with {process.returncode}"
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10):
                    return True
                return False

            wait_until(listens, "pgbouncer's listener", WITHIN_SECONDS)
            yield port
        finally:
            process.kill()
            process.wait(WITHIN_SECONDS)


@pytest.fixture
def pooled_url(pooler: int, database_url: str) -> str:
    pooled = make_url(database_url).set(host="127.0.0.1", port=pooler)
    return pooled.render_as_string(hide_password=False)
