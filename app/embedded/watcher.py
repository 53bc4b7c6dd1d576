"""Stops a server when its last user has gone: a program that each user starts.

It imports only the standard library, so that it starts fast and stays small.
"""

import fcntl
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

STOP_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.02
PROC = Path("/proc")


def main(users: str, data: str) -> None:
    """Waits until no user holds the lock, then stops the server.

    The operating system frees the lock of a user that is killed. A user that comes while the
    server stops waits for the lock, and then starts another server.
    """
    if _stand_in():
        with open(users, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end(Path(data))


def _stand_in() -> bool:
    """Forks, and forks again if the child is killed; returns True in the child.

    The child does the work. It does not depend on the parent, so either of them may be killed.
    """
    while child := os.fork():
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            return False
    return True


def end(data: Path) -> None:
    """Stops the server on this data and all of its children, and waits until they have gone."""
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while pid := postmaster(data):
        # SIGINT: a fast shutdown, without recovery at the next start
        _send(pid, signal.SIGINT if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    # Children of a killed server that are computing notice its end only later, and until then no
    # new server can start.
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while (orphans := _children(data)) and time.monotonic() < deadline:
        for orphan in orphans:
            _send(orphan, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def postmaster(data: Path) -> int | None:
    """Returns the pid of the postgres that runs on this data, or None.

    Ignores a zombie, and a process that has the pid in a stale file. A server that is starting
    has no file yet: it is found by its command line.
    """
    noted = _noted_pid(data)
    if not PROC.exists():
        return noted if noted and _exists(noted) else None
    command = [b"-D", os.fsencode(data)]
    if noted and _command(PROC / str(noted))[1:3] == command:
        return noted
    pids = (process for process in PROC.glob("[0-9]*") if _command(process)[1:3] == command)
    return next((int(process.name) for process in pids), None)


def _noted_pid(data: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int((data / "postmaster.pid").read_text().split()[0])
    return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs under another account
    return True


def _command(process: Path) -> list[bytes]:
    with suppress(OSError):  # it has ended, or we may not read it
        return (process / "cmdline").read_bytes().split(b"\0")
    return [b""]


def _children(data: Path) -> list[int]:
    """Returns the children of any server on this data, by process title and working folder."""
    data = data.resolve()

    def is_child(process: Path) -> bool:
        with suppress(OSError):  # it has ended, or we may not read it
            title = _command(process)[0]
            return title.startswith(b"postgres: ") and (process / "cwd").readlink() == data
        return False

    return [int(process.name) for process in PROC.glob("[0-9]*") if is_child(process)]


if __name__ == "__main__":
    main(*sys.argv[1:])
