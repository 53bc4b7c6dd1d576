"""The application under test, created once and reused by many tests."""

import os
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import FastAPI

from app.discovery import find_features
from app.main import create_app, prepare
from app.task_runner import periodic_tasks_of, run_until_idle
from shared.feature import Feature, FeatureError
from shared.settings import Settings
from shared.state import state_of
from tests.kit.ownership import remember_request

DATABASES = ("database_url", "database_direct_url", "database_replica_url")

FEATURES = pytest.StashKey[tuple[Feature, ...]]()

_created: dict[object, FastAPI] = {}


def features_under_test(config: pytest.Config) -> tuple[Feature, ...]:
    """Returns the features under test: all, or that of `--feature` with its dependencies.

    Raises:
        UsageError: a feature cannot be loaded; pytest prints the message alone.
    """
    if FEATURES not in config.stash:
        try:
            config.stash[FEATURES] = find_features(config.getoption("--feature"))
        except FeatureError as error:
            raise pytest.UsageError(str(error)) from error
    return config.stash[FEATURES]


def application(
    settings: Settings, features: Sequence[Feature], middleware: Sequence[Any] = ()
) -> FastAPI:
    """Returns the application with these settings, ready to start.

    FastAPI analyses a route when it is first requested, which takes as long as most tests do.
    Tests whose settings differ only in the database therefore share one application and its
    routes; `app.state` is new for each test.
    """
    key = _key(settings, features)
    if key not in _created:
        _created[key] = create_app(settings, features, run_tasks=False)
        for each in (remember_request, *middleware):
            _created[key].add_middleware(each)
    else:
        prepare(_created[key], settings, features, run_tasks=False)
        _created[key].dependency_overrides = {}
        _created[key].openapi_schema = None
    return _created[key]


async def run_outbox(app: FastAPI, name: str) -> int:
    """Delivers the changes that wait in the outbox under this name; returns the number of
    changes."""
    (task,) = (task for task in state_of(app).tasks if task.name == f"outbox_{name}")
    return await run_until_idle(app, task)


async def run_all_tasks(app: FastAPI) -> None:
    """Runs the background tasks of all features, but for periodic ones, until none has work."""
    state = state_of(app)
    periodic = {each.name for each in periodic_tasks_of(state.features)}
    tasks = [task for task in state.tasks if task.name not in periodic]
    while any([await run_until_idle(app, task) for task in tasks]):
        pass


def _key(settings: Settings, features: Sequence[Feature]) -> object:
    given = {name: value for name, value in settings if name not in DATABASES}
    # pytest sets PYTEST_CURRENT_TEST for each phase of each test.
    variables = sorted(pair for pair in os.environ.items() if pair[0] != "PYTEST_CURRENT_TEST")
    return tuple(given.items()), tuple(variables), tuple(feature.name for feature in features)
