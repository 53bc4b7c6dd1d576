"""The contract between the kernel and a feature, and the discovery of features on disk."""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

import typer
from fastapi import APIRouter, FastAPI
from sqlmodel.ext.asyncio.session import AsyncSession

import features
from shared.auth import Authenticator
from shared.errors import Problem
from shared.migrations import has_revisions
from shared.settings import AnyFeatureSettings, FeatureSettings
from shared.tasks import Task


class FeatureError(RuntimeError):
    """A feature cannot be loaded. The message names it."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What a feature tells the kernel, exported as `feature` by `features/<name>/__init__.py`.

    Attributes:
        name: the folder's name, the label of its migrations' branch, the tag of its routes.
        router: its routes.
        depends_on: the features whose tables or exports it uses.
        scopes: the permissions it knows, each with a sentence for the documentation.
        constraints: what the violation of a constraint means to the client, by name.
        authenticator: turns bearer tokens into principals, for every feature.
        settings: the class of its own settings; read once, at start: `settings_of` has them.
        lifespan: what it opens at start and closes at the end; it may set `app.state`.
        tasks: its background work.
        commands: its commands of `python -m app`.
        demo: adds rows for a first look; False if the feature has rows already.
    """

    name: str
    router: APIRouter
    depends_on: Sequence[str] = ()
    scopes: Mapping[str, str] = field(default_factory=dict)
    constraints: Mapping[str, Problem] = field(default_factory=dict)
    authenticator: Authenticator | None = None
    settings: type[FeatureSettings] | None = None
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None
    tasks: Sequence[Task] = ()
    commands: typer.Typer | None = None
    demo: Callable[[AsyncSession], Awaitable[bool]] | None = None


def find_features() -> tuple[Feature, ...]:
    """Imports every folder of `features/`, and returns what they declare, dependencies first.

    Raises:
        FeatureError: a folder that cannot be imported, declares nothing or another name,
            depends on what is not there, or on itself through others.
    """
    names = sorted(info.name for info in pkgutil.iter_modules(features.__path__) if info.ispkg)
    found = {name: _load(name) for name in names}
    for feature in found.values():
        for other in feature.depends_on:
            if other not in found:
                raise FeatureError(
                    f"feature {feature.name!r} depends on {other!r}, which is not in features/"
                )
    graph = {name: feature.depends_on for name, feature in found.items()}
    try:
        return tuple(found[name] for name in TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise FeatureError(f"features depend on each other: {' → '.join(error.args[1])}") from error


def with_dependencies(found: Sequence[Feature], name: str) -> tuple[Feature, ...]:
    """The feature `name` and all that it depends on, dependencies first."""
    by_name = {feature.name: feature for feature in found}
    if name not in by_name:
        raise FeatureError(f"there is no feature {name!r}; there are {', '.join(by_name)}")
    wanted: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        wanted.add(current)
        pending += by_name[current].depends_on
    return tuple(feature for feature in found if feature.name in wanted)


def branches_of(found: Sequence[Feature]) -> list[str]:
    """The branches of migrations that these features need: one without tables has none."""
    return ["shared", *(feature.name for feature in found if has_revisions(feature.name))]


def settings_of(app: FastAPI, settings: type[AnyFeatureSettings]) -> AnyFeatureSettings:
    """A feature's settings, as they were read when the application was made."""
    loaded: AnyFeatureSettings = app.state.feature_settings[settings]
    return loaded


def _load(name: str) -> Feature:
    try:
        module = importlib.import_module(f"features.{name}")
    except Exception as error:
        raise FeatureError(
            f"feature {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    declared = getattr(module, "feature", None)
    if not isinstance(declared, Feature):
        raise FeatureError(f"features/{name}/__init__.py must export `feature = Feature(…)`")
    if declared.name != name:
        raise FeatureError(f"feature {name!r} declares the name {declared.name!r}")
    return declared
