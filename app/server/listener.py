"""The listening socket."""

import resource
import socket

from shared.settings import ConfigurationError

MIN_FILES = 4_096  # each connection is one


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
    _raise_file_limit()
    return listener


def _raise_file_limit() -> None:
    """Lets this process and its children open `MIN_FILES` files, where the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MIN_FILES if hard == resource.RLIM_INFINITY else min(MIN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
