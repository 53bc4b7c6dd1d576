"""Checks that advisory locks have names that begin with the package that takes them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("app", "features", "migrations", "shared")
NUMBERED = re.compile(r"pg_\w*advisory\w*\(\s*(?!CAST\(:|:|\$|\?|\))", re.I)
"""An advisory lock in SQL whose key is neither a bound parameter nor an f-string field.

`_locks` replaces f-string fields by question marks.
"""
NAMING, BOUND = "advisory_lock", "bindparam"


def check_locks(root: Path) -> tuple[int, list[str]]:
    """Returns the number of advisory locks, and a line for each not named after its package."""
    found, violations = 0, []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            place = path.relative_to(root)
            if "tests" in place.parts:
                continue
            for line, name in _locks(ast.parse(path.read_text())):
                found += 1
                owner = place.parts[1] if place.parts[0] == "features" else "shared"
                if name is None:
                    violations.append(f"{place}:{line} takes a lock by a number")
                elif not name.startswith(f"{owner}."):
                    violations.append(f"{place}:{line} names a lock {name!r}, not '{owner}.…'")
    return found, violations


def _locks(tree: ast.AST) -> Iterator[tuple[int, str | None]]:
    """Yields the line and the name of each lock; the name is None if the lock has a number."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="advisory_lock"), args=[ast.Constant(str(name)), *_]):
                yield node.lineno, name
            case ast.Call(func=ast.Name(id="advisory_lock")):
                yield node.lineno, None
            case ast.Call(func=ast.Attribute(attr=name), args=[key, *_]) if "advisory" in name:
                if not _is_named(key):
                    yield node.lineno, None
            case ast.JoinedStr(values=parts):
                inside.update(parts)
                text = "".join(str(p.value) if isinstance(p, ast.Constant) else "?" for p in parts)
                if NUMBERED.search(text):
                    yield node.lineno, None
            case ast.Constant(value=str(text)) if node not in inside and NUMBERED.search(text):
                yield node.lineno, None


def _is_named(key: ast.AST) -> bool:
    names = {NAMING, BOUND}
    return isinstance(key, ast.Call) and isinstance(key.func, ast.Name) and key.func.id in names
