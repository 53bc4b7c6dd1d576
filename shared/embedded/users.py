"""Who uses a server: each holds a share of a lock, and who leaves last ends the server."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from shared.embedded import watcher
from shared.embedded.home import Home, locked


@contextmanager
def used(home: Home) -> Iterator[None]:
    """Keeps the server alive while we use it; the last user ends it, and waits for that.

    To be entered under `locked`, which leaving takes again: without it, two who leave at once
    would each take the other for one who stays.
    """
    with (home.folder / "users").open("a+") as users:
        fcntl.flock(users, fcntl.LOCK_SH)  # not while a watcher ends the server
        watching = _watch(home, users)
        try:
            yield
        finally:
            with locked(home.folder):
                _end_if_last(home, users)
                with suppress(OSError):  # it has been killed
                    os.killpg(watching.pid, signal.SIGKILL)
                watching.wait()
                fcntl.flock(users, fcntl.LOCK_UN)


def _watch(home: Home, users: IO[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", watcher.__file__, users.name, home.data],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # of ours, somebody may wait for the end
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C reaches us alone
    )


def _end_if_last(home: Home, users: IO[str]) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # Others use it, and share the lock at once; or the watcher of one who was killed ends it.
        fcntl.flock(users, fcntl.LOCK_SH)
    else:
        watcher.end(home.data)
