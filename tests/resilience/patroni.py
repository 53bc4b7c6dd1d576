"""A PostgreSQL that fails over by itself, in containers: two nodes of Patroni that replicate
synchronously, etcd, and HAProxy and pgbouncer in front.

The containers only sleep, and servers are started in them: a node that is killed keeps its address.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from urllib.request import urlopen

import pytest

from tests.kit import wait_until

IMAGE = os.environ.get("PATRONI_IMAGE", "patroni-pgvector:pg17")
BUILD_IMAGE = f"docker build --tag {IMAGE} - < tests/resilience/patroni.Dockerfile"
COMMAND_TIMEOUT_SECONDS = 60.0
WITHIN_SECONDS = 120.0
PASSWORD = "patroni"
LOGIN = {"username": "postgres", "password": PASSWORD}
DYNAMIC = {
    "ttl": 20,  # seconds, the minimum: then another node replaces a silent primary
    "loop_wait": 1,
    "retry_timeout": 3,
    "synchronous_mode": True,
    "postgresql": {
        "use_pg_rewind": True,
        "parameters": {"max_connections": 100, "shared_buffers": "32MB", "fsync": "off"},
        "pg_hba": [f"host {which} all all scram-sha-256" for which in ("all", "replication")],
    },
}
HAPROXY = """
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    default-server check port 8008 inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
listen primary
    bind *:5432
    option httpchk GET /primary
    server node1 node1:5432
    server node2 node2:5432
"""
PGBOUNCER = f"""
[databases]
* = host=haproxy user=postgres password={PASSWORD}
[pgbouncer]
listen_addr = *
listen_port = 5432
auth_type = any
admin_users = postgres
pool_mode = transaction
default_pool_size = 30
server_login_retry = 1
server_connect_timeout = 3
"""


def docker(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(
        ("docker", *arguments),
        input=text,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Container:
    """A container whose server can be killed, paused and cut off."""

    name: str
    id: str
    address: str

    def run(self, *command: str) -> str:
        return docker("exec", self.id, *command)

    def run_sql(self, *statements: str, database: str = "postgres") -> str:
        url = f"postgresql://postgres:{PASSWORD}@127.0.0.1/{database}"
        commands = (f"--command={statement}" for statement in statements)
        return self.run("psql", url, "--no-psqlrc", "--tuples-only", "--no-align", *commands)

    def start(self, *command: str) -> None:
        docker("exec", "--detach", "--user", "postgres", self.id, *command)

    def write(self, path: str, text: str) -> None:
        docker("exec", "--interactive", self.id, "sh", "-c", f"cat > {path}", text=text)

    def kill(self) -> None:
        """Kills its server, with all processes of it."""
        self.run("pkill", "-KILL", "--euid", "postgres")

    def pause(self) -> None:
        """Stops its processes. Its kernel still takes connections."""
        docker("pause", self.id)

    def cut_off_from(self, *addresses: str) -> None:
        """Drops the packets to and from these addresses, as if a cable were pulled."""
        for address in addresses:
            self.run("ip", "route", "replace", "blackhole", address)

    def heal(self) -> None:
        """Ends `pause` and `cut_off_from`."""
        if docker("inspect", "--format", "{{.State.Paused}}", self.id) == "true":
            docker("unpause", self.id)
        self.run("ip", "route", "flush", "type", "blackhole")


@dataclass(frozen=True)
class Cluster:
    """The containers by name. `gateway` is the address from which clients connect."""

    containers: dict[str, Container]
    gateway: str

    @property
    def nodes(self) -> list[Container]:
        return [self.containers["node1"], self.containers["node2"]]

    def url(self, *containers: Container, database: str = "postgres") -> str:
        """Returns the URL of a database, whose hosts are these containers, or else the nodes."""
        hosts = ",".join(f"{each.address}:5432" for each in containers or self.nodes)
        return f"postgresql://postgres:{PASSWORD}@{hosts}/{database}?sslmode=disable"

    def start(self) -> None:
        """Starts the servers, and waits until both nodes serve."""
        self.containers["etcd"].start(
            "etcd",
            "--data-dir=/tmp/etcd",
            "--listen-client-urls=http://0.0.0.0:2379",
            "--advertise-client-urls=http://etcd:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        )
        for node in self.nodes:
            node.write("/etc/patroni.json", json.dumps(configuration(node)))
        self.heal()
        for name, server, text in (
            ("haproxy", "haproxy -f", HAPROXY),
            ("pgbouncer", "pgbouncer", PGBOUNCER),
        ):
            self.containers[name].write("/etc/configuration", text)
            self.containers[name].start(*server.split(), "/etc/configuration")

    def control(self, *command: str) -> None:
        """Runs `patronictl`."""
        self.containers["etcd"].run("patronictl", "--dcs-url=etcd3://127.0.0.1:2379", *command)

    def find(self, role: str) -> Container | None:
        """Returns the node that is the `primary`, or the `synchronous` standby, as Patroni says."""
        for node in self.nodes:
            with suppress(OSError):
                urlopen(f"http://{node.address}:8008/{role}", timeout=1).close()
                return node
        return None

    def primary(self) -> Container:
        found = wait_until(lambda: self.find("primary"), "a primary", WITHIN_SECONDS)
        assert found
        return found

    def heal(self) -> None:
        """Ends all faults, and waits until both nodes serve."""
        for node in self.nodes:
            node.heal()
            if not node.run("sh", "-c", "pgrep --euid postgres || true"):
                node.start("patroni", "/etc/patroni.json")
        wait_until(
            lambda: self.find("primary") and self.find("synchronous"),
            "the primary and its standby",
            WITHIN_SECONDS,
        )


def configuration(node: Container) -> dict[str, object]:
    """Returns the configuration of Patroni on a node."""
    return {
        "scope": "tessera",
        "name": node.name,
        "etcd3": {"host": "etcd:2379"},
        "restapi": {"listen": "0.0.0.0:8008", "connect_address": f"{node.name}:8008"},
        "bootstrap": {"dcs": DYNAMIC, "initdb": [{"encoding": "UTF8"}, "no-sync"]},
        "postgresql": {
            "listen": "0.0.0.0:5432",
            "connect_address": f"{node.name}:5432",
            "data_dir": "/var/lib/postgresql/node",
            "bin_dir": "/usr/lib/postgresql/17/bin",
            "authentication": {
                "superuser": LOGIN,
                "replication": {"username": "replicator", "password": PASSWORD},
            },
        },
    }


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Runs a cluster during the block; skips the test where Docker or the image is missing."""
    try:
        docker("image", "inspect", IMAGE)
    except (OSError, AssertionError, subprocess.SubprocessError):
        pytest.skip(f"there is no image {IMAGE}, which `{BUILD_IMAGE}` makes")
    with ExitStack() as stack:
        network = docker("network", "create", f"tessera-test-{secrets.token_hex(4)}")
        stack.callback(docker, "network", "rm", network)
        in_network = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}}{{end}}"
        containers: dict[str, Container] = {}
        gateway = ""
        for name in ("etcd", "node1", "node2", "haproxy", "pgbouncer"):
            place = (f"--network={network}", f"--network-alias={name}", "--cap-add=NET_ADMIN")
            container = docker("run", "--detach", "--init", *place, IMAGE)
            stack.callback(docker, "rm", "--force", "--volumes", container)
            address, gateway = docker("inspect", "--format", in_network, container).split()
            containers[name] = Container(name, container, address)
        cluster = Cluster(containers, gateway)
        cluster.start()
        yield cluster
