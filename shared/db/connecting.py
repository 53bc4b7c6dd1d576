"""Connecting to the host of a URL that has the role which is asked for."""

import random
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, TypeAlias

import asyncpg
from asyncpg import TargetServerAttributeNotMatched

from shared.db.errors import CONNECT_ERRORS
from shared.postgres_urls import hosts_of

CONNECT_TIMEOUT_SECONDS = 3.0  # for each host
MAX_AGE_SECONDS = 300.0  # of a connection, so that a name that has moved is followed

Connect: TypeAlias = Callable[[], Awaitable["asyncpg.Connection[Any]"]]


class NoHostInRole(ConnectionError):
    """Each host answers or is away, and none of those that answer has the role."""


class Role(StrEnum):
    """What a server must be, in the words of `target_session_attrs`.

    Each use of a connection asks for its own, whatever the URL says: what a server is, it may cease
    to be while the URL stays the same.
    """

    READ_WRITE = "read-write"
    PRIMARY = "primary"
    """Not in recovery: it may be read-only for a while."""
    STANDBY = "standby"


def connector(
    url: str, role: Role | None, *, timeout: float = CONNECT_TIMEOUT_SECONDS, **options: Any
) -> Connect:
    """Returns a function that connects to the first host that answers and has the role.

    It tries the host that it connected to last before the others. Each host has `timeout` seconds,
    as asyncpg's own timeout is that of all hosts, and a silent one would use it up. Without a role
    `target_session_attrs` of the URL counts. The function raises CONNECT_ERRORS.
    """
    hosts = hosts_of(url)
    if role:
        options["target_session_attrs"] = str(role)

    async def connect() -> "asyncpg.Connection[Any]":
        failures: list[Exception] = []
        for host in tuple(hosts):
            try:
                connection: asyncpg.Connection[Any] = await asyncpg.connect(
                    url, timeout=timeout, **host, **options
                )
            except TargetServerAttributeNotMatched:
                failures.append(NoHostInRole(f"no host has the role {role or 'of the URL'}"))
            except CONNECT_ERRORS as error:
                failures.append(error)
            else:
                hosts.sort(key=lambda each: each is not host)
                return connection
        raise failures[0]  # of the host that was connected to last

    return connect


def expiry() -> float:
    """Returns until when a new connection is used, by the monotonic clock: the connections of a
    pool, made together, are not replaced together."""
    return time.monotonic() + MAX_AGE_SECONDS * random.uniform(0.8, 1.0)  # noqa: S311
