"""Ends a process when its parent ends."""

import ctypes
import os
import signal
import sys
from multiprocessing import parent_process
from threading import Thread

PR_SET_PDEATHSIG = 1


def exit_with_parent(parent: int | None = None) -> None:
    """Asks Linux for a SIGTERM when the parent dies, even by SIGKILL (prctl(2)).

    Pass the pid of the parent if you know it, in case the parent has died already. On other
    systems this does nothing.
    """
    if sys.platform != "linux":
        return
    parent = parent or os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the prctl
        os.kill(os.getpid(), signal.SIGTERM)


def exit_with_starter() -> None:
    """Sends itself a SIGTERM when the process ends that has started this one by `multiprocessing`.

    That is not the parent where it was forked by another process. Does nothing in any other.
    """
    starter = parent_process()
    if starter is None:
        return

    def wait() -> None:
        starter.join()
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=wait, daemon=True).start()
