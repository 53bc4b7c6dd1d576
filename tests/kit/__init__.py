"""The test kit, a pytest plugin: a real database for each test, and HTTP clients."""

import gc
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app.task_runner import run_until_idle
from shared.settings import Settings
from tests.kit.applications import (
    application,
    features_under_test,
    run_all_tasks,
    run_outbox,
)
from tests.kit.bodies import payload_for
from tests.kit.calls import assert_max_calls
from tests.kit.clients import (
    PASSWORD,
    SignUp,
    admin,
    anonymous,
    api_key_client,
    client,
    connect,
    is_ready,
    open_events,
    open_websocket,
    other_client,
    sign_in,
    sign_up,
)
from tests.kit.commands import SECRET_KEY, Command, command, run_command
from tests.kit.databases import SERVER, administer, database_url, server
from tests.kit.events import events
from tests.kit.ownership import check_table_writes
from tests.kit.publishing import check_published
from tests.kit.queries import QueryCounts, assert_query_budgets, max_queries, recorded_queries
from tests.kit.redis import Redis, free_port, redis
from tests.kit.servers import Server, running_server
from tests.kit.waiting import eventually, wait_until, within

__all__ = [
    "PASSWORD",
    "SECRET_KEY",
    "Command",
    "Redis",
    "Server",
    "SignUp",
    "admin",
    "administer",
    "anonymous",
    "api_key_client",
    "assert_max_calls",
    "assert_query_budgets",
    "client",
    "command",
    "connect",
    "database_url",
    "events",
    "eventually",
    "free_port",
    "is_ready",
    "max_queries",
    "open_events",
    "open_websocket",
    "other_client",
    "payload_for",
    "recorded_queries",
    "redis",
    "run_all_tasks",
    "run_command",
    "run_outbox",
    "run_until_idle",
    "server",
    "sign_in",
    "sign_up",
    "wait_until",
    "within",
]

LONG = os.environ.get("VERIFY") == "long"
"""Whether tests that repeat faults run their long version: `make verify args=long`."""

SETTING_PREFIXES = ("APP_", "OTEL_", "SENTRY_", "CELERY_", "PG")
OTHER_SETTINGS = ("HOST", "PORT", "WEB_CONCURRENCY", "FORCE_COLOR", "NO_COLOR", "COLUMNS")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SERVER_URL = "APP_TEST_DATABASE_URL"
COUNTS = pytest.StashKey[QueryCounts]()
CLEANUP = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--feature", help="Test with this feature and its dependencies alone")
    parser.addoption("--verify", action="store_true", help="The tests that take long, alone")
    parser.addoption("--citus", action="store_true", help="On a cluster, with distributed tables")
    parser.addoption("--query-counts", action="store_true", help="End with each endpoint's queries")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "verify: takes long; runs in `make verify` alone")
    config.addinivalue_line("markers", "one_server: does what distributed tables cannot do")
    config.addinivalue_line("markers", "long: takes longer still: `make verify args=long`")
    clear_environment()
    if config.option.query_counts:
        config.stash[COUNTS] = QueryCounts()
    if hasattr(config, "workerinput"):  # a pytest-xdist worker uses the controller's server
        config.stash[SERVER] = Server(**config.workerinput["server"])
    elif not config.option.collectonly:
        config.stash[CLEANUP] = ExitStack()
        config.stash[SERVER] = config.stash[CLEANUP].enter_context(
            running_server(features_under_test(config), citus=config.option.citus)
        )


def clear_environment() -> None:
    """Removes the developer's settings from the environment, so that no test depends on them:
    also those of libpq, of HTTP proxies and of terminals.

    Sets `APP_ENV=test`, with which this process, and those that tests start, do not read `.env`.
    """
    for name in list(os.environ):
        if name == SERVER_URL:
            continue
        if name.startswith(SETTING_PREFIXES) or name.upper() in (*OTHER_SETTINGS, *PROXIES):
            del os.environ[name]
    os.environ["APP_ENV"] = "test"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Selects the quick tests, or with `--verify` the slow ones."""
    chosen = [item for item in items if _is_asked_for(item, verify=config.option.verify)]
    if config.option.citus:
        chosen = [item for item in chosen if not item.get_closest_marker("one_server")]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def _is_asked_for(item: pytest.Item, *, verify: bool) -> bool:
    if item.get_closest_marker("long"):
        return verify and LONG
    return verify == bool(item.get_closest_marker("verify"))


def pytest_collection_finish() -> None:
    """Takes imported objects out of the garbage collector, which would visit it each time:
    a tenth of the time of a test."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    server = node.config.stash[SERVER]
    node.workerinput["server"] = vars(server)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Sends the query counts of a pytest-xdist worker to the controller."""
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


@pytest.fixture
def settings(database_url: str) -> Settings:
    """The settings of the application under test. Override this fixture to change them."""
    return Settings(
        env="test",
        database_url=database_url,
        database_pool_size=10,
        secret_key=SecretStr(SECRET_KEY),
        log_level="warning",
    )


@pytest.fixture
async def app(settings: Settings, pytestconfig: pytest.Config) -> AsyncIterator[FastAPI]:
    """The running application. Its background tasks run only when a test calls `drain`."""
    counts = pytestconfig.stash.get(COUNTS, None)
    middleware = [counts.middleware] if counts else []
    app = application(settings, features_under_test(pytestconfig), middleware)
    routes = list(app.routes)
    with check_table_writes(app), check_published(), counts.counting() if counts else nullcontext():
        async with app.router.lifespan_context(app):
            yield app
    assert app.routes == routes, "tests share the application's routes: make one with `create_app`"
