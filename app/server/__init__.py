"""The HTTP server: a listening socket, and uvicorn in one process or several."""

from app.server.listener import listen
from app.server.serving import serve, serve_with_workers

__all__ = ["listen", "serve", "serve_with_workers"]
