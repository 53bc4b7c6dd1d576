"""nginx, with the configuration of the compose stack, behind something that ends TLS."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.kit import Server, free_port, wait_until
from tests.serving import ROOT, serving

pytestmark = pytest.mark.verify

PER_ADDRESS = 3


@pytest.fixture
def api(server: Server, database_url: str, tmp_path: Path) -> Iterator[str]:
    settings = {
        "database_url": database_url,
        "trusted_proxies": '["127.0.0.1"]',  # nginx
        "rate_limiting": "true",
        "rate_sign_in_per_address": f"{PER_ADDRESS}/hour",
    }
    with serving(tmp_path, free_port(), settings) as served:
        yield served.address


@contextmanager
def nginx(api: str, folder: Path, trusted: str) -> Iterator[str]:
    """Runs nginx by the image's own command, with its files in `folder`, and yields its address."""
    if shutil.which("nginx") is None:
        pytest.skip("there is no nginx: apt-get install nginx")
    port = free_port()
    moved = {
        "/tmp/": f"{folder}/",
        "/etc/nginx/tessera.conf": f"{folder}/nginx.conf",
        "http://api:8000": api,
        "listen 8000": f"listen {port}",
    }
    configuration = _replace(moved, (ROOT / "app/deploy/nginx.conf").read_text())
    (folder / "nginx.conf").write_text(configuration)
    stage = (ROOT / "Dockerfile").read_text().partition("AS proxy")[2]
    command = next(line for line in stage.splitlines() if line.startswith("CMD"))
    arguments = json.loads(_replace(moved, command.removeprefix("CMD")))
    environment = os.environ | {"TRUSTED_PROXIES": trusted}
    with subprocess.Popen(arguments, env=environment) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: answers(address), "an answer of nginx", 30)
            yield address
        finally:
            process.terminate()


def _replace(replacements: Mapping[str, str], text: str) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def answers(address: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{address}/healthz").status_code == 200
    return False


def guess(address: str, forwarded_for: str) -> int:
    form = {"grant_type": "password", "username": f"{os.urandom(4).hex()}@example.com"}
    headers = {"X-Forwarded-For": forwarded_for}
    answer = httpx.post(
        f"{address}/auth/token", data=form | {"password": "wrong"}, headers=headers, timeout=30
    )
    return answer.status_code


REFUSED = [400] * PER_ADDRESS + [429]


def test_clients_behind_a_trusted_proxy_are_told_apart(api: str, tmp_path: Path) -> None:
    with nginx(api, tmp_path, "192.0.2.0/24 127.0.0.1") as address:
        assert [guess(address, "203.0.113.1") for _ in REFUSED] == REFUSED
        assert guess(address, "203.0.113.2") == 400
        spoofed = [guess(address, f"198.51.100.{n}, 203.0.113.3, 192.0.2.7") for n in range(4)]
        assert spoofed == REFUSED


def test_nobody_else_is_believed(api: str, tmp_path: Path) -> None:
    with nginx(api, tmp_path, "") as address:
        assert [guess(address, f"203.0.113.{n}") for n in range(4)] == REFUSED
