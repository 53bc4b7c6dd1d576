"""The HTTP server: a listening socket, and uvicorn in one process or several."""

from app.server.listener import listen
from app.server.reloading import serve_with_reload
from app.server.serving import serve, serve_with_workers

__all__ = ["listen", "serve", "serve_with_reload", "serve_with_workers"]
