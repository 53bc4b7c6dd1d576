"""The declaration of a feature: the contract between it and the kernel."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import typer
from fastapi import APIRouter, FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

from shared.auth import Authenticator
from shared.db.changes import Subscription
from shared.problems import Problem
from shared.settings import FeatureSettings
from shared.tasks import PeriodicTask, Task


class FeatureError(RuntimeError):
    """A feature cannot be loaded. The message names it."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A feature's demo. `load` adds its rows, unless the feature has rows; `hint` is what
    `make run` prints to try it, with the URL of the API in place of `{address}`."""

    load: Callable[[AsyncSession], Awaitable[None]]
    hint: str


@dataclass(frozen=True, kw_only=True)
class Feature:
    """The declaration of a feature, `feature` in `features/<name>/feature.py`.

    Attributes:
        name: the name of its folder, of its migration branch, and of the tag of its routes.
        router: its routes, if it has any.
        depends_on: the features whose tables or exports it uses.
        scopes: its permissions, each with a sentence for the documentation.
        constraints: the problem to answer with when a constraint is violated, by constraint name.
        authenticator: turns bearer tokens into principals, for every feature.
        settings: its settings class, read once, at start; `settings_of` returns the values.
        lifespan: opens its resource of the process at start, yields it, and closes it at the end;
            a route gets it by `resource`.
        tasks: its background tasks, which process rows.
        periodic_tasks: its background tasks that run once in a period.
        subscriptions: its functions that run when rows of other features have changed.
        commands: its commands of `python -m app`.
        demo: its demo rows.
        extensions: the extensions of PostgreSQL that it needs, each with a statement that uses it.
    """

    name: str
    router: APIRouter = field(default_factory=APIRouter)
    depends_on: Sequence[str] = ()
    scopes: Mapping[str, str] = field(default_factory=dict)
    constraints: Mapping[str, Problem] = field(default_factory=dict)
    authenticator: Authenticator | None = None
    settings: type[FeatureSettings] | None = None
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[object]] | None = None
    tasks: Sequence[Task] = ()
    periodic_tasks: Sequence[PeriodicTask] = ()
    subscriptions: Sequence[Subscription] = ()
    commands: typer.Typer | None = None
    demo: Demo | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)
