"""The listening socket."""

import socket

from shared.settings import ConfigurationError


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to the address and that child processes inherit.

    Raises:
        ConfigurationError: the port is taken, or we may not use it.
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
