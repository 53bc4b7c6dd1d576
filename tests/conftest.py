import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from app.main import create_app
from shared.settings import Settings
from tests.operations.collecting import Collector, collecting


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    """The address of the application, served with its background tasks by this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive(), "the server did not stop within 60 s"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector
