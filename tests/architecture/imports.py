"""Finds the imports in the tests of features.

import-linter sees only packages, and a feature's `tests` folder is not one.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """An import in a feature's tests: its file and line, and the module or name it imports."""

    feature: str
    place: str
    imported: str


def imports_of_tests(root: Path) -> Iterator[Import]:
    for path in sorted(root.glob("features/*/tests/**/*.py")):
        place = path.relative_to(root)
        for node in ast.walk(ast.parse(path.read_text())):
            for imported in _imported(node):
                line = getattr(node, "lineno", 0)
                yield Import(place.parts[1], f"{place}:{line}", imported)


def _imported(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield from (f"{module}.{alias.name}" for alias in names)
