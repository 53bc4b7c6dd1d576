"""Builds and runs the real image and compose stack; skipped if Docker is not available."""

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit import free_port
from tests.resilience.load import Load, under_load
from tests.test_readme import commands_of

pytestmark = pytest.mark.verify

ROOT = Path(__file__).parents[2]
METRICS_PATHS = [
    b"/metrics",
    b"/%6Detrics",
    b"/metrics?x=1",
    b"//metrics",
    b"/./metrics",
    b"/x/../metrics",
    b"/x/%2e%2e/metrics",
    b"/%2fmetrics",
    b"/metrics/",
    b"/metrics%2f",
    b"/metrics;x",
    b"/METRICS",
]
PASSWORDS = [
    "POSTGRES_PASSWORD",
    "POSTGRES_OWNER_PASSWORD",
    "POSTGRES_SERVICE_PASSWORD",
    "REDIS_PASSWORD",
]
FOLDERS = ("app", "features", "migrations", "shared")
COMMAND_TIMEOUT_SECONDS = 1000  # the first build downloads every dependency
PASSWORD = "correct horse battery"
FORM = {"grant_type": "password", "username": "ada@example.com", "password": PASSWORD}
FILES = (".dockerignore", "compose.yaml", "Dockerfile", "Makefile", "requirements.lock")


@dataclass(frozen=True)
class Stack:
    """The compose stack of a clone, with a separate project name and port."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
        )
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def compose(self, *command: str) -> str:
        return self.run("docker", "compose", *command)

    def states(self, service: str) -> list[Any]:
        """Returns the state of each container of the service."""
        containers = self.compose("ps", "--all", "--quiet", service).split()
        return [found["State"] for found in json.loads(self.run("docker", "inspect", *containers))]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    for command in ("docker version", "docker compose version", "make --version"):
        skip_unless_it_works(command)
    make_private_clone(tmp_path)
    ours = ("APP_", "COMPOSE_", "MAKE", "MFLAGS", "PORT", "POSTGRES_", "REDIS_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    (tmp_path / ".env").write_text(f"PORT={free_port()}")
    project = f"tessera-test-{secrets.token_hex(4)}"
    stack = Stack(tmp_path, inherited | {"COMPOSE_PROJECT_NAME": project})
    try:
        yield stack
    finally:
        stack.run("docker", "compose", "down", "--volumes", "--timeout", "1", check=False)
        stack.run("docker", "image", "rm", "--force", project, f"{project}-proxy", check=False)


def skip_unless_it_works(command: str) -> None:
    try:
        subprocess.run(command.split(), check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        pytest.skip(f"`{command}` does not work here")


def make_private_clone(folder: Path) -> None:
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)


@pytest.mark.timeout(1200)
def test_the_stack_from_make_up_to_make_down(stack: Stack) -> None:
    """One single test, so that the stack is built only once, with any number of test workers."""
    address = up(stack, "--scale api=3 --scale worker=2")
    every_service_is_healthy(stack)
    an_account_can_make_an_item(address)
    the_documentation_has_its_assets(address)
    the_metrics_are_not_for_everybody(address)
    nothing_reaches_what_it_does_not_need(stack)
    a_deploy_fails_no_request(stack, address)
    the_service_has_no_rights_that_it_does_not_need(stack)
    the_image_has_neither_tests_nor_their_tools(stack)
    the_log_is_one_json_object_a_line(stack)
    a_stop_is_clean(stack)
    the_secrets_are_private_and_written_once(stack)
    a_dump_is_restored_into_an_empty_stack(stack, address)
    stack.run("make", "down")
    assert stack.compose("ps", "--all", "--quiet") == ""


def up(stack: Stack, args: str = "") -> str:
    """Runs `make up`, and returns the address that it prints for the API."""
    said = stack.run("make", "up", f"args={args}")
    match = re.search(r"answers at (http://127\.0\.0\.1:\d+)$", said, re.MULTILINE)
    assert match, said
    return match[1]


def every_service_is_healthy(stack: Stack) -> None:
    for service, count in {"proxy": 1, "api": 3, "worker": 2, "postgres": 1, "redis": 1}.items():
        found = [state["Health"]["Status"] for state in stack.states(service)]
        assert found == ["healthy"] * count, service


def an_account_can_make_an_item(address: str) -> None:
    account = {"email": FORM["username"], "password": PASSWORD}
    with httpx.Client(base_url=address, timeout=30) as client:
        assert client.post("/users", json=account).status_code == 201
        token = client.post("/auth/token", data=FORM).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        created = client.post("/items", json={"title": "Enamel mug", "price": 19.99})
        assert created.status_code == 201
        assert client.get(created.headers["Location"]).json() == created.json()
        # nginx passes no upgrade of a request with a body, which would be lost
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        item = {"title": "Kettle", "price": 39.9}
        assert client.post("/items", json=item, headers=upgrade).status_code == 201


def the_documentation_has_its_assets(address: str) -> None:
    assets = re.findall(r'(?:src|href)="(/[^"]+)"', httpx.get(f"{address}/docs", timeout=30).text)
    assert assets
    for asset in assets:
        assert httpx.get(address + asset, timeout=30).status_code == 200, asset


def the_metrics_are_not_for_everybody(address: str) -> None:
    """nginx normalises the path before it compares; a client must not do that first."""
    for path in METRICS_PATHS:
        answer = httpx.get(httpx.URL(address, raw_path=path), timeout=30)
        assert answer.status_code in (400, 404), path
        assert "http_request" not in answer.text, path


def nothing_reaches_what_it_does_not_need(stack: Stack) -> None:
    """Each service knows only the hosts and passwords that it needs."""
    assert "postgres" not in hosts_known_to(stack, "proxy")
    assert "redis" not in hosts_known_to(stack, "proxy")
    assert hosts_known_to(stack, "postgres") == {"postgres", "redis", "api", "worker"}
    network = f"{stack.environment['COMPOSE_PROJECT_NAME']}_data"
    internal = stack.run("docker", "network", "inspect", "--format", "{{.Internal}}", network)
    assert internal == "true\n"
    for service in ("api", "worker"):
        environment = stack.compose("exec", "-T", service, "env")
        assert "APP_DATABASE_URL=postgresql://tessera_service:" in environment
        assert {"POSTGRES_PASSWORD=", "POSTGRES_OWNER_PASSWORD="} <= set(environment.splitlines())
    ping = ("redis", "env", "-u", "REDISCLI_AUTH", "redis-cli", "ping")
    assert "NOAUTH" in stack.compose("exec", "-T", *ping)


def hosts_known_to(stack: Stack, service: str) -> set[str]:
    ask = (
        "for name in proxy api worker postgres redis; do getent hosts $name >&2 && echo $name; done"
    )
    return set(stack.compose("exec", "-T", service, "sh", "-c", f"{ask}; true").split())


def a_deploy_fails_no_request(stack: Stack, address: str) -> None:
    """Replaces the replicas one after the other while clients write and search."""
    before = {state["StartedAt"] for state in stack.states("api")}

    async def deploy() -> Load:
        async with under_load(address) as load:
            await asyncio.to_thread(stack.run, "make", "deploy")
            await load.wait_for_writes()
        return load

    load = asyncio.run(deploy())

    assert load.failed == 0, load.refusals
    assert before.isdisjoint(state["StartedAt"] for state in stack.states("api"))
    exported = httpx.get(f"{address}/items/export", headers=load.headers, timeout=30)
    stored = [json.loads(line)["title"] for line in exported.text.splitlines()]
    assert len(stored) == len(set(stored))
    assert {title for titles in load.acknowledged for title in titles} <= set(stored)


def the_service_has_no_rights_that_it_does_not_need(stack: Stack) -> None:
    for service in ("api", "worker"):
        status = stack.compose("exec", "-T", service, "cat", "/proc/1/status")
        assert re.search(r"^Uid:\s+10001\s", status, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        write = 'touch /srv/x 2>/dev/null || touch /venv/x 2>/dev/null || echo "refused"'
        assert stack.compose("exec", "-T", service, "sh", "-c", write) == "refused\n"


def the_image_has_neither_tests_nor_their_tools(stack: Stack) -> None:
    find = "find /srv /venv/bin -name tests -o -name 'testing*' -o -name 'pytest*' -o -name '.env*'"
    assert stack.compose("exec", "-T", "api", "sh", "-c", find) == ""


def the_log_is_one_json_object_a_line(stack: Stack) -> None:
    for service in ("migrate", "api", "worker"):
        log = stack.compose("logs", "--no-log-prefix", service)
        lines = log.replace(
            "\x1b[2K", ""
        ).splitlines()  # compose emits "clear line" even without a tty
        assert lines, service
        assert [line for line in lines if not line.startswith('{"')] == []


def a_stop_is_clean(stack: Stack) -> None:
    stack.compose("stop", "api", "worker")
    for service in ("api", "worker"):
        assert {state["ExitCode"] for state in stack.states(service)} == {0}, service


def the_secrets_are_private_and_written_once(stack: Stack) -> None:
    file = stack.folder / ".env"
    written = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    names = re.findall(r"^(\w+)=\S{43,}$", written, re.MULTILINE)
    assert names == ["APP_SECRET_KEY", *PASSWORDS]

    up(stack)

    assert file.read_text() == written


def a_dump_is_restored_into_an_empty_stack(stack: Stack, address: str) -> None:
    """Follows the recipe of the README as it stands."""
    strict = ("bash", "-o", "errexit", "-o", "pipefail", "-c")
    stack.run(*strict, commands_of("dump of the stack"))
    stack.compose("down", "--volumes")
    said = stack.run(*strict, commands_of("restore of the stack"))
    assert "wrong" not in said
    with httpx.Client(base_url=address, timeout=30) as client:
        token = client.post("/auth/token", data=FORM).json()["access_token"]
        found = client.get("/items", headers={"Authorization": f"Bearer {token}"}).json()["items"]
    assert {item["title"] for item in found} == {"Enamel mug", "Kettle"}
