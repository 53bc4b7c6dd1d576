from collections.abc import Iterator

import pytest

from app.main import create_app
from shared.settings import Settings
from tests.operations.collecting import Collector, collecting
from tests.serving import serving_app


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    """The address of the application, served with its background tasks by this process."""
    with serving_app(create_app(settings)) as address:
        yield address


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector
