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
from shared.db.migrations import has_revisions
from shared.problems import Problem
from shared.settings import FeatureSettings
from shared.tasks import Task


class FeatureError(RuntimeError):
    """A feature cannot be loaded. The message names it."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A feature's demo. `load` adds its rows, or returns False if there are rows already; `hint`
    is what `make run` prints to try it, with the URL of the API in place of `{address}`."""

    load: Callable[[AsyncSession], Awaitable[bool]]
    hint: str


@dataclass(frozen=True, kw_only=True)
class Feature:
    """The declaration of a feature, exported as `feature` by `features/<name>/__init__.py`.

    Attributes:
        name: the name of its folder, of its migration branch, and of the tag of its routes.
        router: its routes.
        depends_on: the features whose tables or exports it uses.
        scopes: its permissions, each with a sentence for the documentation.
        constraints: the problem to answer with when a constraint is violated, by constraint name.
        authenticator: turns bearer tokens into principals, for every feature.
        settings: its settings class, read once, at start; `settings_of` returns the values.
        lifespan: opens what it holds for the process at start, yields it, and closes it at the end;
            `resource` is how a route gets it.
        tasks: its background tasks.
        commands: its commands of `python -m app`.
        demo: its demo rows.
        extensions: the extensions of PostgreSQL that it needs, each with a statement that uses it.
    """

    name: str
    router: APIRouter
    depends_on: Sequence[str] = ()
    scopes: Mapping[str, str] = field(default_factory=dict)
    constraints: Mapping[str, Problem] = field(default_factory=dict)
    authenticator: Authenticator | None = None
    settings: type[FeatureSettings] | None = None
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[object]] | None = None
    tasks: Sequence[Task] = ()
    commands: typer.Typer | None = None
    demo: Demo | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)


def find_features(only: str | None = None) -> tuple[Feature, ...]:
    """Imports every folder of `features/` and returns their declarations, dependencies first.

    With `only`, imports this feature and its dependencies, and no others.

    Raises:
        FeatureError: a folder cannot be imported, or it declares no feature or another name, or
            depends on a missing feature, or on itself through others; or there is no `only`.
    """
    names = sorted(info.name for info in pkgutil.iter_modules(features.__path__) if info.ispkg)
    if only and only not in names:
        raise FeatureError(f"there is no feature {only!r}; there are {', '.join(names)}")
    found: dict[str, Feature] = {}
    pending = [only] if only else names[::-1]
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = _load(name)
            pending += found[name].depends_on if only else ()
            _check_dependencies(found[name], names)
    graph = {name: feature.depends_on for name, feature in sorted(found.items())}
    try:
        return tuple(found[name] for name in TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise FeatureError(f"features depend on each other: {' → '.join(error.args[1])}") from error


def _check_dependencies(feature: Feature, names: Sequence[str]) -> None:
    for other in feature.depends_on:
        if other not in names:
            raise FeatureError(
                f"feature {feature.name!r} depends on {other!r}, which is not in features/"
            )


def branches_of(found: Sequence[Feature]) -> list[str]:
    """Returns the migration branches of the kernel and of the features that have revisions."""
    return ["shared", *(feature.name for feature in found if has_revisions(feature.name))]


def extensions_of(found: Sequence[Feature]) -> dict[str, str]:
    """Returns the extensions of PostgreSQL that these features need, each with its statement."""
    return {name: probe for feature in found for name, probe in feature.extensions.items()}


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
