"""The URLs of PostgreSQL, as libpq takes them: with several hosts, a socket, a service."""

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SCHEMES = ("postgresql", "postgres")


def hosts_of(url: str) -> list[dict[str, Any]]:
    """Returns the hosts of a URL in order, each as arguments of `asyncpg.connect`; one without
    arguments where the URL leaves them to a service, `PGHOST` or the default.

    Raises:
        ValueError: it is not a URL of PostgreSQL, or a port is no number.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"the scheme is {parts.scheme!r}")
    query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    named, ports = query.get("host", [""])[-1], query.get("port", [""])[-1]
    listed = unquote(parts.netloc.rpartition("@")[2]) or named
    hosts = [_host(each) for each in listed.split(",")]
    if ports:
        numbers = [int(port) for port in ports.split(",")]
        numbers *= len(hosts) if len(numbers) == 1 else 1
        hosts = [{"port": n} | host for host, n in zip(hosts, numbers, strict=True)]
    return hosts


def _host(address: str) -> dict[str, Any]:
    """Parses `host`, `host:5432`, `[::1]:5432`, the folder of a socket, or nothing."""
    if address.startswith("["):
        name, _, port = address[1:].partition("]")
        port = port.removeprefix(":")
    elif address.startswith("/"):
        name, port = address, ""
    else:
        name, _, port = address.partition(":")
    return ({"host": name} if name else {}) | ({"port": int(port)} if port else {})
