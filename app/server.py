"""The HTTP server of one process: a listening socket, uvicorn, and a word when it is ready."""

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from shared.settings import ConfigurationError


def listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        ConfigurationError: the port is taken or may not be used.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ConfigurationError(
            f"port {port} on {host} cannot be used ({error.strerror}); choose another with PORT"
        ) from None
    listener.set_inheritable(True)
    return listener


class Server(uvicorn.Server):
    """A uvicorn server that says when it is ready to answer."""

    on_ready: Callable[[], None] = staticmethod(lambda: None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_ready()


def serve(app: FastAPI, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM; requests under way are finished first."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the application believes the proxies that its settings name
        timeout_graceful_shutdown=10,
    )
    server = Server(config)
    server.on_ready = on_ready
    server.run(sockets=[listener])
