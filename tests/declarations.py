"""Reads what each feature declares for the tests that check all features.

A feature declares it as constants in `features/<name>/tests/<topic>.py`, or has no such file if
it has nothing to declare. So a new feature needs no edit outside its folders.
"""

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
CONSTANTS = {
    "constraints": {"NEVER_VIOLATED", "REFERENCE_TABLES"},
    "contract": {
        "ANY_BODY_ACCEPTED",
        "UNDOCUMENTED_ERRORS",
        "SESSION_ENDING",
        "LINE_MEDIA_TYPES",
        "UNDOCUMENTED_VALUES",
        "NEVER_SUCCEEDING",
    },
    "bare": {"HANDLERS"},
    "load": {"PATHS_READ", "PATHS_TIMED", "COUNTS_OF_UNFINISHED"},
    "privacy": {
        "UNOWNED_PARAMETERS",
        "PUBLIC_OPERATIONS",
        "OWNED_PARAMETERS",
        "PUBLISHED_PARAMETERS",
        "REFUSED_OPERATIONS",
        "REQUEST_ARGUMENTS",
    },
}
"""The constants that tests read, by topic. Each is a mapping or a set."""


def declaring(topic: str) -> dict[str, ModuleType]:
    """Returns the module `features/<name>/tests/<topic>.py` of each feature that has one, by name.

    Loads the modules without importing the features, which would take a second or two.
    """
    files = sorted(ROOT.glob(f"features/*/tests/{topic}.py"))
    return {path.parts[-3]: _load(path) for path in files}


def declared_by_feature(topic: str, constant: str) -> Iterator[tuple[str, str, Any]]:
    """Yields the feature, key and value of each entry; the value is None for a set."""
    assert constant in CONSTANTS[topic]
    for feature, module in declaring(topic).items():
        entries = getattr(module, constant, ())
        for key in entries:
            yield feature, key, entries[key] if isinstance(entries, dict) else None


def declared(topic: str, constant: str) -> dict[str, Any]:
    """Returns the entries of all features; no two may have the same key, but that of an error."""
    merged: dict[str, Any] = {}
    for feature, key, value in declared_by_feature(topic, constant):
        repeated = key in merged and constant != "UNDOCUMENTED_ERRORS"
        assert not repeated, f"{constant} of {feature} has {key!r}, and so has another's"
        merged[key] = value
    return merged


def _load(path: Path) -> ModuleType:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    spec = spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
