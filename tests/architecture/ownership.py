"""Checks in the source that features use only their own tables. The test kit checks at runtime
what the source does not show (tests/kit/ownership.py).

A table belongs to the feature whose model or, without one, whose migration creates it; a branch may
also change a table that it has created for another. A feature's code and migrations write only to
its own tables. They read and reference only its own tables and those of
the features in its `depends_on`. It imports only those features, too.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import grimp
from alembic.script import ScriptDirectory
from sqlmodel.main import default_registry

from app.discovery import find_features
from app.migrations import alembic_config
from app.scaffold.linting import sql_of
from shared.db.tables import table_owners
from tests.architecture.imports import imports_of_tests
from tests.kit.ownership import written_tables

SQL = re.compile(r"\b(?:SELECT|INSERT|UPDATE|DELETE|FROM|JOIN|INTO|TABLE|TRIGGER|INDEX)\b")
LOWER_SQL = re.compile(r"^\s*(?:select|insert|update|delete|with|alter|drop|create|truncate)\s")
CREATED = re.compile(
    r"\bCREATE\s+(?:UNLOGGED\s+)?TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(?:public\.)?\"?(\w+)", re.I
)
NAME = r"(?:public\.)?\"?\w+\"?"
READ = re.compile(  # both tables of `FROM items AS item, users`
    rf"\b(?:FROM|JOIN|USING|REFERENCES|ON)(?:\s+ONLY)?\s+((?:{NAME}(?:\s+(?:AS\s+)?\w+)?\s*,\s*)*{NAME})",
    re.I,
)
WRITING_CALLS = frozenset({"insert", "update", "delete"})
RESOLVED_PACKAGES = ("features", "sqlalchemy", "sqlmodel")


@dataclass(frozen=True)
class TableAccess:
    """An access of a feature's code to a table: it reads, writes to or refers to it."""

    feature: str
    place: str
    verb: str
    table: str


def check_tables(graph: grimp.ImportGraph, root: Path) -> tuple[set[str], list[str]]:
    """Returns the features that have tables, and a line for each forbidden access or import."""
    depends_on = {feature.name: set(feature.depends_on) for feature in find_features()}
    migrations = dict(_migrations())
    creator = _created(migrations)
    owner = {**creator, **table_owners()}
    accesses = [*_in_models(), *_in_migrations(migrations), *_in_code(root, depends_on)]
    violations = [
        f"{access.place} {access.verb} {access.table}, which belongs to {owner[access.table]}"
        for access in accesses
        if access.table in owner
        and not _allowed(access, owner[access.table], depends_on)
        and not (
            access.place.startswith("migrations/") and creator.get(access.table) == access.feature
        )
    ]
    violations += _undeclared_imports(graph, root, depends_on)
    return depends_on.keys() & owner.values(), violations


def _allowed(access: TableAccess, owner: str, depends_on: Mapping[str, set[str]]) -> bool:
    reads = access.verb != "writes to"
    return owner == access.feature or (reads and owner in depends_on.get(access.feature, ()))


def _migrations() -> Iterator[tuple[Path, str]]:
    """Yields the file of each revision, with the SQL of its upgrade and downgrade."""
    for script in ScriptDirectory.from_config(alembic_config()).walk_revisions():
        yield Path(script.path), sql_of(script, "upgrade") + sql_of(script, "downgrade")


def creators() -> dict[str, str]:
    """Returns the tables that the revisions create, each with its branch."""
    return _created(dict(_migrations()))


def _created(migrations: Mapping[Path, str]) -> dict[str, str]:
    return {
        table: path.parent.name
        for path, sql in migrations.items()
        for table in CREATED.findall(sql)
    }


def _in_models() -> Iterator[TableAccess]:
    """Yields the foreign keys of the models."""
    owner = table_owners()
    for mapper in default_registry.mappers:
        table = str(mapper.local_table)
        place = f"{mapper.class_.__module__}.{mapper.class_.__name__}"
        for key in mapper.local_table.foreign_keys:
            yield TableAccess(owner[table], place, "refers to", key.target_fullname.split(".")[0])


def _in_migrations(migrations: Mapping[Path, str]) -> Iterator[TableAccess]:
    for path, sql in migrations.items():
        yield from _in_sql(path.parent.name, f"migrations/{path.parent.name}/{path.name}", sql)


def _in_code(root: Path, features: Mapping[str, set[str]]) -> Iterator[TableAccess]:
    for feature in features:
        folder = root / "features" / feature
        for path in sorted(folder.rglob("*.py")):
            if "tests" not in path.relative_to(folder).parts:
                tree, place = ast.parse(path.read_text()), str(path.relative_to(root))
                for text in _strings(tree):
                    if SQL.search(text) or LOWER_SQL.search(text):
                        yield from _in_sql(feature, place, text)
                for table in _written_models(tree):
                    yield TableAccess(feature, place, "writes to", table)


def _in_sql(feature: str, place: str, sql: str) -> Iterator[TableAccess]:
    written = written_tables(sql)
    for table in sorted(written):
        yield TableAccess(feature, place, "writes to", table)
    for table in sorted(_read_tables(sql) - written):
        yield TableAccess(feature, place, "reads", table)


def _read_tables(sql: str) -> set[str]:
    listed = (name.strip() for names in READ.findall(sql) for name in names.split(","))
    return {name.split()[0].removeprefix("public.").strip('"') for name in listed}


def _strings(tree: ast.AST) -> Iterator[str]:
    """Yields the strings of the code except docstrings, with f-string fields as question marks."""
    passed_over: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=value):
                passed_over.add(value)
            case ast.JoinedStr(values=parts):
                passed_over.update(parts)
                yield "".join(str(p.value) if isinstance(p, ast.Constant) else "?" for p in parts)
            case ast.Constant(value=str(text)) if node not in passed_over:
                yield text


def _written_models(tree: ast.AST) -> Iterator[str]:
    """Yields the tables that the code writes to through models, under any imported name.

    Finds `Item(…)`, `insert(Item)`, `sqlalchemy.update(Item)` and `Item.__table__.delete()`.
    """
    tables = {
        id(made): str(mapper.local_table)
        for mapper in default_registry.mappers
        for made in (mapper.class_, mapper.local_table)
    }
    names = dict(_imported_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _resolve(node.func, names)
            written = [called]
            if getattr(called, "__name__", "") in WRITING_CALLS:
                arguments = (_resolve(argument, names) for argument in node.args[:1])
                written = [getattr(called, "__self__", None), *arguments]
            yield from (tables[id(one)] for one in written if id(one) in tables)


def _imported_names(tree: ast.AST) -> Iterator[tuple[str, object]]:
    """Yields the names that a module imports from `RESOLVED_PACKAGES`, and their objects."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    module = alias.name if alias.asname else alias.name.split(".")[0]
                    if module.startswith(RESOLVED_PACKAGES):
                        yield alias.asname or module, import_module(module)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    if module.startswith(RESOLVED_PACKAGES):
                        imported = getattr(import_module(module), alias.name, None)
                        yield alias.asname or alias.name, imported


def _resolve(node: ast.AST, names: Mapping[str, object]) -> object:
    match node:
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=value, attr=attribute):
            return getattr(_resolve(value, names), attribute, None)
    return None


def _undeclared_imports(
    graph: grimp.ImportGraph, root: Path, depends_on: Mapping[str, set[str]]
) -> Iterator[str]:
    for feature, declared in depends_on.items():
        package = f"features.{feature}"
        for module in sorted({package, *graph.find_descendants(package)}):
            for imported in sorted(graph.find_modules_directly_imported_by(module)):
                other = imported.removeprefix("features.").split(".")[0]
                if imported.startswith("features.") and other not in {feature, *declared}:
                    yield f"{module} imports {imported}, but {feature} does not depend on {other}"
    for found in imports_of_tests(root):
        package, other, *_ = [*found.imported.split("."), ""]
        if package == "features" and other not in {found.feature, *depends_on[found.feature]}:
            yield (
                f"{found.place} imports {found.imported},"
                f" but {found.feature} does not depend on {other}"
            )
