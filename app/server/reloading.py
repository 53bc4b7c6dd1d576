"""Serves for development: restarts the application when a file of the code changes."""

import multiprocessing
import socket
import sys
from multiprocessing.context import ForkServerContext

import uvicorn
from uvicorn import _subprocess
from uvicorn.supervisors import ChangeReload

CODE = ("app", "features", "migrations", "shared")
NO_LIBRARIES = {*CODE, "__main__", "__mp_main__"}
POLL_SECONDS = 0.1
GRACEFUL_SECONDS = 1  # for the requests in progress when a file changes


def serve_with_reload(listener: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM, each time a file changes with another process.

    Requests wait meanwhile: the socket stays open. What fails to start says why, and the next
    change is another try.
    """
    if sys.platform == "linux":  # on macOS, libraries of the system do not survive a fork
        _start_processes_by_fork()
    listener.listen()
    config = uvicorn.Config(
        "app.asgi:app",
        reload=True,
        reload_dirs=list(CODE),
        reload_delay=POLL_SECONDS,
        http="app.server.protocol:HttpProtocol",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the application itself trusts the proxies in its settings
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    ChangeReload(config, target=uvicorn.Server(config).run, sockets=[listener]).run()


def _start_processes_by_fork() -> None:
    """Lets uvicorn fork from a process that has imported the libraries, and no code of ours.

    A new process would import them each time: 1.5 s, where our code takes 0.3 s. uvicorn has no
    setting for it.
    """
    imported = {name.partition(".")[0] for name in sys.modules}
    forking: ForkServerContext = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(sorted(imported - sys.stdlib_module_names - NO_LIBRARIES))
    _subprocess.spawn = forking  # type: ignore[assignment]
