"""The test kit, a pytest plugin: a real database for each test, and clients that speak HTTP.

Each test gets its own clone of a migrated template database, so that commits, races and
notifications are real. The server is the one of `APP_TEST_DATABASE_URL`, else a container
where a Docker daemon answers, else the embedded PostgreSQL.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app.main import create_app
from shared.features import Feature, find_features, with_dependencies
from shared.settings import Settings
from shared.testing.bodies import body
from shared.testing.calls import keep_calls
from shared.testing.clients import (
    PASSWORD,
    Mails,
    SignUp,
    admin,
    anonymous,
    client,
    connect,
    machine,
    mails,
    other,
    sign_in,
    sign_up,
)
from shared.testing.events import events
from shared.testing.ownership import watched
from shared.testing.queries import QueryCounts, keep_budgets, max_queries
from shared.testing.servers import Server, drop_database, execute, running_server

__all__ = [
    "PASSWORD",
    "Mails",
    "Server",
    "SignUp",
    "admin",
    "anonymous",
    "body",
    "client",
    "connect",
    "events",
    "keep_budgets",
    "keep_calls",
    "machine",
    "mails",
    "max_queries",
    "other",
    "sign_in",
    "sign_up",
]

SERVER = pytest.StashKey[Server]()
COUNTS = pytest.StashKey[QueryCounts]()
CLEANUP = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--feature", help="Test with this feature and its dependencies alone")
    parser.addoption("--query-counts", action="store_true", help="End with each endpoint's queries")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.query_counts:
        config.stash[COUNTS] = QueryCounts()
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist uses the controller's server
        config.stash[SERVER] = Server(**config.workerinput["server"])
    elif not config.option.collectonly:
        config.stash[CLEANUP] = ExitStack()
        config.stash[SERVER] = config.stash[CLEANUP].enter_context(
            running_server(_features(config))
        )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    server = node.config.stash[SERVER]
    node.workerinput["server"] = vars(server)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist sends its counts to the controller."""
    config: Any = session.config
    if COUNTS in config.stash and hasattr(config, "workeroutput"):
        config.workeroutput["query_counts"] = config.stash[COUNTS].as_rows()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if COUNTS in node.config.stash:
        node.config.stash[COUNTS].add_rows(node.workeroutput.get("query_counts", []))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if COUNTS in config.stash:
        terminalreporter.section("queries of each endpoint, fewest to most")
        for line in config.stash[COUNTS].as_table():
            terminalreporter.line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    if CLEANUP in config.stash:
        config.stash[CLEANUP].close()


def pytest_report_header(config: pytest.Config) -> str:
    return f"database: {config.stash[SERVER].name}" if SERVER in config.stash else "database: none"


def _features(config: pytest.Config) -> tuple[Feature, ...]:
    only = config.getoption("--feature")
    return with_dependencies(find_features(), only) if only else find_features()


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    """The PostgreSQL server under test."""
    return pytestconfig.stash[SERVER]


@pytest.fixture
async def database_url(server: Server) -> AsyncIterator[str]:
    """A database of the test's own: migrated, empty, and dropped at the end."""
    name = f"test_{secrets.token_hex(8)}"
    clone = f'CREATE DATABASE "{name}" TEMPLATE "{server.template}" STRATEGY file_copy'
    await execute(server.admin_url, clone)
    yield server.url(name)
    await drop_database(server.admin_url, name)


@pytest.fixture
def settings(database_url: str) -> Settings:
    """The settings of the application under test. Override to change one."""
    return Settings(
        _env_file=None,
        env="test",
        database_url=database_url,
        database_pool_size=10,
        secret_key=SecretStr("a secret for tests, 32 bytes or more"),
        log_level="warning",
    )


@pytest.fixture
async def app(settings: Settings, pytestconfig: pytest.Config) -> AsyncIterator[FastAPI]:
    """The running application. Its background tasks do not run by themselves: `drain` them."""
    application = create_app(settings, _features(pytestconfig), run_tasks=False)
    counts = pytestconfig.stash.get(COUNTS, None)
    if counts:
        application.add_middleware(counts.middleware)
    with watched(application), counts.counting() if counts else nullcontext():
        async with application.router.lifespan_context(application):
            yield application
