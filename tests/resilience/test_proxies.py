"""Through proxies that reuse connections, each client gets the answers to its own requests."""

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from tests.kit import free_port, wait_until, within
from tests.raw_http import RawConnection, RawServer, raw_server
from tests.serving import stop

pytestmark = pytest.mark.verify

ROUNDS = 10
HOST = b"Host: localhost\r\n"

# Each keeps one connection to us, which all clients share, and passes `Upgrade` on.
NGINX = """
daemon off;
worker_processes 1;
pid FOLDER/pid;
error_log FOLDER/error.log;
USER
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    upstream api { server 127.0.0.1:API; keepalive 1; }
    server {
        listen 127.0.0.1:PORT;
        location / {
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_request_buffering BUFFERING;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
        }
    }
}
"""
HAPROXY = """
defaults
    mode http
    timeout connect 10s
    timeout client 10s
    timeout server 10s
    http-reuse always
frontend all
    bind 127.0.0.1:PORT
    default_backend api
backend api
    server api 127.0.0.1:API maxconn 1 pool-max-conn 1
"""
VARNISH = """
vcl 4.1;
backend api { .host = "127.0.0.1"; .port = "API"; }
sub vcl_recv {
    set req.http.X-Upgrade = req.http.Upgrade;
    return (pass);
}
sub vcl_backend_fetch {
    if (bereq.http.X-Upgrade) {
        set bereq.http.Upgrade = bereq.http.X-Upgrade;
        set bereq.http.Connection = "Upgrade";
    }
}
"""
CADDY = """
{
    admin off
    auto_https off
}
http://:PORT {
    reverse_proxy 127.0.0.1:API {
        transport http {
            max_conns_per_host 1
        }
    }
}
"""
PROXIES = {
    "nginx": (NGINX.replace("BUFFERING", "on"), ["nginx", "-c", "FILE"]),
    "nginx without buffers": (NGINX.replace("BUFFERING", "off"), ["nginx", "-c", "FILE"]),
    "haproxy": (HAPROXY, ["haproxy", "-f", "FILE"]),
    "varnish": (
        VARNISH,
        ["varnishd", "-F", "-j", "none", "-n", "FOLDER", "-a", "127.0.0.1:PORT", "-f", "FILE"],
    ),
    "caddy": (CADDY, ["caddy", "run", "--adapter", "caddyfile", "--config", "FILE"]),
}


@pytest.fixture
async def raw(app: FastAPI) -> AsyncIterator[RawServer]:
    async with raw_server(app) as running:
        yield running


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest, raw: RawServer, tmp_path: Path) -> Iterator[int]:
    """Runs a proxy in front of the server, and yields its port."""
    text, command = PROXIES[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    port, file = free_port(), tmp_path / "configuration"
    values = {
        "FILE": file,
        "FOLDER": tmp_path,
        "PORT": port,
        "API": raw.port,
        "USER": "user root;" if os.geteuid() == 0 else "",
    }

    def fill(text: str) -> str:
        for name, value in values.items():
            text = text.replace(name, str(value))
        return text

    file.write_text(fill(text))
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [fill(argument) for argument in command],
            env=os.environ | {"HOME": str(tmp_path)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def listens() -> bool:
        assert process.poll() is None, (tmp_path / "output").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10):
            return True
        return False

    try:
        wait_until(listens, f"the listener of {request.param}", 60)
        yield port
    finally:
        stop(process)


def request(
    line: bytes, client: AsyncClient, *headers: bytes, body: bytes = b"", length: bool = True
) -> bytes:
    token = b"Authorization: %b\r\n" % client.headers["authorization"].encode()
    framing = b"Content-Length: %d\r\n" % len(body) if length and body else b""
    return b"".join([line, b" HTTP/1.1\r\n", HOST, token, *headers, framing, b"\r\n", body])


def attacks(attacker: AsyncClient) -> list[bytes]:
    """Returns requests in whose bodies another hides."""
    hidden = request(b"GET /users/me", attacker)
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    offers = [
        b"Connection: Upgrade\r\nUpgrade: %b\r\n" % token
        for token in (b"h2c", b"anything", b"websocket")
    ]
    chunked = b"Transfer-Encoding: chunked\r\n"
    chunk = b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
    return [
        *(request(b"POST /items", attacker, offer, body=hidden) for offer in offers),
        *(request(b"GET /items", attacker, offer, key, body=hidden) for offer in offers),
        *(
            request(b"POST /items", attacker, offer, chunked, body=chunk, length=False)
            for offer in (b"", *offers)
        ),
        request(b"POST /items", attacker, chunked, body=b"0\r\n\r\n" + hidden),
        request(b"POST /items", attacker, b"Content-Length: 4\r\n", body=hidden),
        request(b"POST /items", attacker, b"Transfer-Encoding: identity\r\n", body=hidden),
        request(b"POST /items", attacker, b"Expect: 100-continue\r\n", body=hidden),
        request(b"HEAD /items", attacker, body=hidden),
        request(b"OPTIONS /items", attacker, body=hidden),
    ]


async def test_a_client_gets_the_answer_to_its_own_request(
    proxy: int, client: AsyncClient, other_client: AsyncClient
) -> None:
    own = (await other_client.get("/users/me")).json()
    for attack in attacks(client):
        for _ in range(ROUNDS):
            attacker = await RawConnection.open(proxy)
            await attacker.send(attack)
            async with within(10, "the beginning of an answer"):
                await attacker.reader.read(1)
            victim = await RawConnection.open(proxy)
            await victim.send(request(b"GET /users/me", other_client))
            answer = await victim.answer()
            assert answer.json() == own, (attack[:300], answer)
            attacker.close()
            victim.close()
