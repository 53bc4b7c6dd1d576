"""A shared cache in front of the service, as it comes: it serves no answer to another account."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.kit import PASSWORD, Server, free_port, wait_until
from tests.serving import serving

pytestmark = pytest.mark.verify


@pytest.fixture
def cache(server: Server, database_url: str, tmp_path: Path) -> Iterator[str]:
    """The address of a Varnish with its own rules, in front of the API."""
    if shutil.which("varnishd") is None:
        pytest.skip("there is no varnishd: apt-get install varnish")
    port, api_port = free_port(), free_port()
    with serving(tmp_path, api_port, {"env": "test", "database_url": database_url}):
        command = ["varnishd", "-F", "-n", str(tmp_path / "varnish"), "-s", "malloc,16m"]
        command += ["-a", f"127.0.0.1:{port}", "-b", f"127.0.0.1:{api_port}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as varnish:
            try:
                address = f"http://127.0.0.1:{port}"
                wait_until(lambda: answers(address), "an answer of Varnish", 30)
                yield address
            finally:
                varnish.terminate()


def answers(address: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{address}/healthz").status_code == 200
    return False


def api_key_of(address: str) -> dict[str, str]:
    """Registers an account, and returns the header with an API key of it."""
    account = {"email": f"{uuid4()}@example.com", "password": PASSWORD}
    with httpx.Client(base_url=address, timeout=30) as client:
        client.post("/users", json=account)
        form = {"grant_type": "password", "username": account["email"], "password": PASSWORD}
        token = client.post("/auth/token", data=form).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        key = {"name": "machine", "scopes": ["items:read", "items:write", "users:self"]}
        return {"X-API-Key": client.post("/users/me/api-keys", json=key).json()["key"]}


def test_a_shared_cache_shares_what_is_public_and_nothing_else(cache: str) -> None:
    mine, theirs = api_key_of(cache), api_key_of(cache)
    item = httpx.post(f"{cache}/items", headers=mine, json={"title": "Secret mug", "price": 1})
    paths = [item.headers["location"], "/items", "/items/export"]
    for path in paths:
        for _ in range(2):
            assert httpx.get(cache + path, headers=mine).status_code == 200
        assert "Secret mug" not in httpx.get(cache + path, headers=theirs).text, path
        assert httpx.get(cache + path).status_code == 401, path
        assert httpx.get(cache + path, headers=mine).status_code == 200, "a refusal was kept"
    published = [httpx.get(f"{cache}/.well-known/jwks.json") for _ in range(2)]
    hits = [len(answer.headers["x-varnish"].split()) == 2 for answer in published]
    assert hits == [False, True]
