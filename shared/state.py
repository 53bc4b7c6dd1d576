"""The objects that a process holds from its start to its end."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from alembic.script import ScriptDirectory
from fastapi import Depends, FastAPI
from starlette.datastructures import State
from starlette.requests import HTTPConnection

from shared.auth import Authenticator
from shared.db import Database
from shared.feature import Feature
from shared.problems import Problem
from shared.settings import AnyFeatureSettings, FeatureSettings, Settings
from shared.tasks import Task
from shared.web.pagination import Paginator
from shared.web.rate_limits import Limiter

Resource = TypeVar("Resource")


class AppState(State):
    """`app.state`, typed. `database`, `revisions` and `resources` are set while the application
    runs. `resources` has what the lifespan of each feature yields, by its type."""

    settings: Settings
    features: Sequence[Feature]
    feature_settings: Mapping[type[FeatureSettings], FeatureSettings]
    authenticator: Authenticator | None
    constraints: Mapping[str, Problem]
    tasks: Sequence[Task]
    runs_tasks: bool
    limiter: Limiter
    paginator: Paginator
    database: Database
    revisions: ScriptDirectory
    resources: dict[type, object]
    is_stopping: bool
    backlogs_read_at: float
    shards: dict[str, float]


def state_of(app: FastAPI) -> AppState:
    assert isinstance(app.state, AppState)
    return app.state


def settings_of(app: FastAPI, settings: type[AnyFeatureSettings]) -> AnyFeatureSettings:
    """Returns a feature's settings, as read when the application was created."""
    loaded = state_of(app).feature_settings[settings]
    assert isinstance(loaded, settings)
    return loaded


def resource_of(app: FastAPI, kind: type[Resource]) -> Resource:
    """Returns what the lifespan of a feature has yielded, by its type."""
    found = state_of(app).resources[kind]
    assert isinstance(found, kind)
    return found


def resource(kind: type[Resource]) -> Any:
    """Returns a dependency that gives what the lifespan of a feature has yielded:
    `StateDep = Annotated[UsersState, resource(UsersState)]`."""

    async def find(request: HTTPConnection) -> Resource:
        return resource_of(request.app, kind)

    return Depends(find)
