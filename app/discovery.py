"""The features on disk, and their needs of the database."""

import importlib
import pkgutil
import traceback
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import features
from app.migrations import has_revisions
from shared.db import Database
from shared.db.changes import Subscriber, Subscribers, Subscription
from shared.db.outbox import outbox_subscriber
from shared.feature import Feature, FeatureError
from shared.settings import Settings

OWN_PACKAGES = ("app", "features", "shared")


def find_features(only: str | None = None) -> tuple[Feature, ...]:
    """Imports every folder of `features/` and returns their declarations, dependencies first.

    With `only`, imports this feature and its dependencies, and no others.

    Raises:
        FeatureError: a folder cannot be imported, or it declares no feature or another name, or
            depends on a missing feature, or on itself through others; or `only` does not exist.
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


def subscriptions_of(found: Sequence[Feature]) -> list[Subscription]:
    """Returns the subscriptions of these features to changes of others' rows."""
    return [each for feature in found for each in feature.subscriptions]


def subscribers_of(found: Sequence[Feature]) -> Subscribers:
    """Returns the functions to run in the publisher's transaction, by topic. All subscribers that
    run after the commit have one, which writes into the outbox."""
    subscriptions = subscriptions_of(found)
    by_topic: dict[str, list[Subscriber]] = {each.topic.name: [] for each in subscriptions}
    for topic, subscribers in by_topic.items():
        own = [each for each in subscriptions if each.topic.name == topic]
        subscribers += [each.run for each in own if each.outbox is None]
        if names := sorted(each.outbox for each in own if each.outbox):
            subscribers.append(outbox_subscriber(names))
    return by_topic


def new_database(settings: Settings, found: Sequence[Feature]) -> Database:
    """Returns the database of the settings, with the subscriptions of these features."""
    assert settings.database_url
    return Database(settings.database_url, settings, subscribers_of(found))


def _load(name: str) -> Feature:
    module = f"features.{name}.feature"
    try:
        declared = getattr(importlib.import_module(module), "feature", None)
    except Exception as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == module):
            raise FeatureError(_import_error(name, error)) from error
        declared = None
    if not isinstance(declared, Feature):
        raise FeatureError(f"features/{name}/feature.py must declare `feature = Feature(…)`")
    if declared.name != name:
        raise FeatureError(f"feature {name!r} declares the name {declared.name!r}")
    return declared


def _import_error(name: str, error: Exception) -> str:
    """Returns the innermost line of our code that failed, and the error:
    `features/items/tables.py:12: KeyError: 'title'`."""
    calls = list(traceback.walk_tb(error.__traceback__))[1:]  # without `_load` itself
    lines = [
        (frame.f_code.co_filename, line)
        for frame, line in calls
        if frame.f_globals.get("__name__", "").partition(".")[0] in OWN_PACKAGES
    ]
    message = str(error)
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        lines.append((error.filename, error.lineno or 1))
        message = error.msg
    where = f"{_from_root(lines[-1][0])}:{lines[-1][1]}" if lines else f"features/{name}"
    return f"{where}: {type(error).__name__}: {message}"


def _from_root(file: str) -> Path:
    """Returns the path of a file as seen from the root of the repository, if it is in it."""
    path, root = Path(file), Path(features.__path__[0]).parent
    return path.relative_to(root) if path.is_relative_to(root) else path
