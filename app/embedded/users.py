"""The users of a server: each holds a shared file lock, and the last to leave stops the server."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from app.embedded import watcher
from app.embedded.home import EmbeddedPostgresError, Home, locked


@contextmanager
def used(home: Home) -> Iterator[None]:
    """Keeps the server running during the block; the last user stops it, and waits for the stop.

    Enter it while you hold `locked`, which it takes again to leave: without it, two users that
    leave at once would each see the other's lock, and neither would stop the server.
    """
    with (home.folder / "users").open("a+") as users:
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while a watcher stops the server
        watching = _watch(home, users)
        try:
            yield
        finally:
            with locked(home.folder):
                _end_if_last(home, users)
                with suppress(OSError):  # it was killed before
                    os.killpg(watching.pid, signal.SIGKILL)
                watching.wait()
                fcntl.flock(users, fcntl.LOCK_UN)


@contextmanager
def unused(home: Home) -> Iterator[None]:
    """Keeps the server from starting during the block. Enter it while you hold `locked`.

    Raises:
        EmbeddedPostgresError: a process uses the server.
    """
    with (home.folder / "users").open("a+") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedPostgresError(
                f"a process uses the database in {home.data}: stop `make run`, `make dev`,"
                " `make shell` and the like first"
            ) from None
        watcher.end(home.data)
        yield


def _watch(home: Home, users: IO[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", watcher.__file__, users.name, home.data],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # else readers of our output would wait for the watcher
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C does not reach it
    )


def _end_if_last(home: Home, users: IO[str]) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Either other users hold the shared lock, and we get it at once; or the watcher of a killed
        # user is stopping the server, and we wait for that.
        fcntl.flock(users, fcntl.LOCK_SH)
    else:
        watcher.end(home.data)
