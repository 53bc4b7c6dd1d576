"""Checks that advisory locks have names that begin with the package that takes them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("app", "features", "migrations", "shared")
LOCK_IN_SQL = re.compile(r"pg_\w*advisory\w*\(\s*([^)\s]*)", re.I)
"""A call of PostgreSQL's advisory lock functions, and the beginning of its argument."""

NAMED = "<name>"
BOUND_PARAMETER = re.compile(r"CAST\(:|:|\$", re.I)


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
                owner = _owner_of(place)
                if name is None:
                    violations.append(f"{place}:{line} takes a lock by a number")
                elif not name.startswith(f"{owner}."):
                    violations.append(f"{place}:{line} names a lock {name!r}, not '{owner}.…'")
    return found, violations


def _owner_of(place: Path) -> str:
    top, *inside = place.parts
    is_a_features = top in {"features", "migrations"} and len(inside) > 1
    return inside[0] if is_a_features else "app" if top == "app" else "shared"


def _locks(tree: ast.AST) -> Iterator[tuple[int, str | None]]:
    """Yields the line and the name of each lock; the name is None if the lock has a number.

    A bound parameter may have any value, so its module must call `advisory_lock` somewhere.
    """
    nodes = list(ast.walk(tree))
    binds_names = any(_is_named(node) for node in nodes)
    in_f_strings = {
        part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in nodes:
        match node:
            case ast.Call(args=[ast.Constant(str(name)), *_]) if _is_named(node):
                yield node.lineno, name
            case ast.Call() if _is_named(node):
                yield node.lineno, None
            case ast.Call(func=ast.Attribute(attr=name), args=[key, *_]) if "advisory" in name:
                if not (_is_named(key) or (_is_bound(key) and binds_names)):
                    yield node.lineno, None
            case ast.JoinedStr(values=parts):
                if _has_a_number("".join(map(_text_of, parts)), binds_names=binds_names):
                    yield node.lineno, None
            case ast.Constant(value=str(text)) if node not in in_f_strings:
                if _has_a_number(text, binds_names=binds_names):
                    yield node.lineno, None


def _has_a_number(sql: str, *, binds_names: bool) -> bool:
    """Whether the SQL takes a lock by anything but a name."""
    return any(
        key and key != NAMED and not (BOUND_PARAMETER.match(key) and binds_names)
        for key in LOCK_IN_SQL.findall(sql)
    )


def _text_of(part: ast.expr) -> str:
    """Returns a part of an f-string, with `NAMED` for a call of `advisory_lock`."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    return NAMED if isinstance(part, ast.FormattedValue) and _is_named(part.value) else "?"


def _is_named(node: ast.AST) -> bool:
    return _is_call_of("advisory_lock", node)


def _is_bound(node: ast.AST) -> bool:
    return _is_call_of("bindparam", node)


def _is_call_of(function: str, node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function
    )
