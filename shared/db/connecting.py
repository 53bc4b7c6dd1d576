"""Connects to the host of a URL that has the requested role."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import asyncpg
from asyncpg import TargetServerAttributeNotMatched

from shared.db.errors import CONNECT_ERRORS
from shared.postgres_urls import hosts_of

CONNECT_TIMEOUT_SECONDS = 3.0  # for each host

SOCKET_OPTIONS = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 2,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 10_000,  # milliseconds
}
"""Make a connection to a machine that has lost power fail after some ten seconds."""

Connect: TypeAlias = Callable[[], Awaitable["asyncpg.Connection[Any]"]]

SELECT_STARTED = "SELECT pg_postmaster_start_time()"
_STARTED: "WeakKeyDictionary[asyncpg.Connection[Any], datetime]" = WeakKeyDictionary()
"""When the server of a connection started, to the microsecond."""


class NoHostInRole(ConnectionError):
    """None of the hosts that answer has the role."""


class ServerRole(StrEnum):
    """The role that a server must have, in the words of `target_session_attrs`.

    Each use of a connection asks for a role, whether or not the URL does: a server may change its
    role while the URL stays the same.
    """

    READ_WRITE = "read-write"
    PRIMARY = "primary"
    """Not in recovery: it may be read-only for a while."""
    STANDBY = "standby"


def connector(
    url: str, role: ServerRole | None, *, timeout: float = CONNECT_TIMEOUT_SECONDS, **options: Any
) -> Connect:
    """Returns a function that connects to the first host that answers and has the role.

    It tries the host that it connected to last first, and one at which a caller was cancelled
    last. Each host has `timeout` seconds: asyncpg's own timeout is for all hosts, and a silent one
    would use it up. Without a role, as behind a pooler, `target_session_attrs` of the URL holds.
    The function raises CONNECT_ERRORS.
    """
    hosts = _hosts_in_order(url, standby=role is ServerRole.STANDBY)
    if role:
        options["target_session_attrs"] = str(role)

    async def connect() -> "asyncpg.Connection[Any]":
        failures: list[Exception] = []
        for host in tuple(hosts):
            try:
                async with asyncio.timeout(timeout):
                    connection: asyncpg.Connection[Any] = await asyncpg.connect(
                        url, **host, **options
                    )
                    if role:
                        await _record_start(connection)
            except TargetServerAttributeNotMatched:
                failures.append(NoHostInRole(f"no host has the role {role or 'of the URL'}"))
            except CONNECT_ERRORS as error:
                failures.append(error)
            except asyncio.CancelledError:  # the caller had less time than the host
                hosts.sort(key=lambda each: each is host)
                raise
            else:
                hosts.sort(key=lambda each: each is not host)
                _notice_silence(connection)
                return connection
        raise failures[0]  # of the host that was connected to last

    return connect


@lru_cache
def _hosts_in_order(url: str, *, standby: bool) -> list[dict[str, Any]]:
    """Returns the hosts of a URL: one list for all connectors, which reorder it, and another for
    those that need a standby."""
    return hosts_of(url)


def _notice_silence(connection: "asyncpg.Connection[Any]") -> None:
    transport: Any = connection._transport  # type: ignore[attr-defined]  # no other way to it
    found: socket.socket = transport.get_extra_info("socket")
    if found.family != socket.AF_UNIX:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in SOCKET_OPTIONS.items():
            if option := getattr(socket, name, None):  # not on each operating system
                found.setsockopt(socket.IPPROTO_TCP, option, value)


async def _record_start(connection: "asyncpg.Connection[Any]") -> None:
    try:
        _STARTED[connection] = await connection.fetchval(SELECT_STARTED)
    except BaseException:
        connection.terminate()
        raise


def server_of(connection: "asyncpg.Connection[Any]") -> object:
    """Returns what tells the server of a connection from others: one server may have several
    addresses, and an address may move to another server. A pooler, which chooses a server for each
    transaction, is told by its address.
    """
    return _STARTED.get(connection) or connection._addr  # type: ignore[attr-defined]  # no other way
