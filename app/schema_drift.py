"""Compares a database with what the migrations make: tables by their models, functions and triggers
by `definitions.sql`.

A restore may have left something out, the build of an index may have failed, or an operator may
have changed something by hand. It only reads catalogs, so any role may do it, on a standby too.
Additions, such as an operator's own index, are no difference.
"""

import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import (
    AddColumnOp,
    CreateIndexOp,
    CreatePrimaryKeyOp,
    DropColumnOp,
    DropConstraintOp,
    DropIndexOp,
    DropTableOp,
    MigrateOperation,
    OpContainer,
)
from sqlalchemy import Connection, Inspector, inspect, text
from sqlmodel import SQLModel

from app.definitions import SELECT_DEFINITIONS, read_definitions
from app.discovery import branches_of
from app.migrations import ROOT, SchemaState, branch_of
from shared.db.tables import table_owners
from shared.feature import Feature

AUTOGENERATE_PLUGINS = ("alembic.autogenerate.*", "alembic.ext.checkconstraint_byname")
RESTORE = "restore it from a backup"
KIND = re.compile(r"^[A-Z ]+ ")
DROPS = (DropColumnOp, DropConstraintOp, DropIndexOp, DropTableOp)
SELECT_INVALID_INDEXES = text("""
SELECT indexrelid::regclass::text FROM pg_index
WHERE NOT indisvalid AND indrelid::regclass::text = ANY (:tables)
AND indexrelid NOT IN (SELECT index_relid FROM pg_stat_progress_create_index)
ORDER BY 1
""")
SELECT_DISABLED_TRIGGERS = text("""
SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger
WHERE tgenabled = 'D' AND tgrelid::regclass::text = ANY (:tables) ORDER BY 1
""")
SELECT_DENIED = text("""
SELECT 'table ' || oid::regclass, string_agg(privilege, ', ') FROM pg_class,
    unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
WHERE oid::regclass::text = ANY (:tables) AND NOT has_table_privilege(oid, privilege) GROUP BY oid
ORDER BY 1
""")


@dataclass(frozen=True)
class Difference:
    """Something that is missing, or is not as the migrations make it, and how to mend it."""

    subject: str
    state: str
    mend: str

    @property
    def advice(self) -> str:
        return f"{self.state}; {self.mend}"


def find_differences(
    connection: Connection, features: Sequence[Feature], schema: SchemaState
) -> list[Difference]:
    """Returns the differences from what the migrations of the kernel and of these features make,
    but for those of newer code; none before all have run. Changes nothing."""
    if schema.pending:
        return []
    newer = set(map(branch_of, schema.unknown))
    branches = [branch for branch in branches_of(features) if branch not in newer]
    tables = {name for name, owner in table_owners().items() if owner in branches}
    return [
        *_different_definitions(connection, branches),
        *_different_tables(connection, tables),
        *_unusable(connection, sorted(tables)),
    ]


def _different_definitions(
    connection: Connection, branches: Collection[str]
) -> Iterator[Difference]:
    found: dict[str, str] = dict(map(tuple, connection.execute(text(SELECT_DEFINITIONS))))
    for name, (definition, file) in read_definitions(branches).items():
        subject = KIND.sub(lambda kind: kind[0].lower(), name)
        path = file.relative_to(ROOT.parent)
        mend = (
            f'psql "$OWNER_URL" --file={path}' if definition else f"make it as {path.parent} does"
        )
        if name not in found:
            yield Difference(subject, "missing", mend)
        elif definition and found[name].strip() != definition:
            yield Difference(subject, "not as the migrations make it", mend)


def _different_tables(connection: Connection, tables: Collection[str]) -> Iterator[Difference]:
    """Yields the changes that Alembic would make, and primary keys, which it does not compare."""
    compared = MigrationContext.configure(
        connection,
        opts={
            "autogenerate_plugins": AUTOGENERATE_PLUGINS,
            "compare_type": True,
            "compare_server_default": True,
            "include_object": lambda _, name, kind, *__: kind != "table" or name in tables,
        },
    )
    changes = produce_migrations(compared, SQLModel.metadata).upgrade_ops
    assert changes
    inspector = inspect(connection)
    existing = set(inspector.get_table_names()) & set(tables)
    for name in sorted(set(tables) - existing):
        yield Difference(f"table {name}", "missing", RESTORE)
    for operation in [*_kept(list(_leaves(changes))), *_primary_keys(inspector, existing)]:
        table = getattr(operation, "table_name", None) or getattr(operation, "source_table", "")
        if isinstance(operation, AddColumnOp):
            yield Difference(f"column {table}.{operation.column.name}", "missing", RESTORE)
        elif table in existing:
            yield Difference(f"table {table}", "not as the migrations make it", _sql(operation))


def _kept(operations: Sequence[MigrateOperation]) -> Iterator[MigrateOperation]:
    """Leaves out the operations that drop something, unless another makes one of the same name."""
    made = {_name(each) for each in operations if not isinstance(each, DROPS)} - {None}
    return (each for each in operations if not isinstance(each, DROPS) or _name(each) in made)


def _primary_keys(inspector: Inspector, tables: Collection[str]) -> Iterator[MigrateOperation]:
    """Yields the operations that add missing primary keys."""
    for name in sorted(tables):
        key = SQLModel.metadata.tables[name].primary_key
        if inspector.get_pk_constraint(name)["constrained_columns"] != key.columns.keys():
            yield CreatePrimaryKeyOp.from_constraint(key)


def _leaves(container: OpContainer) -> Iterator[MigrateOperation]:
    for operation in container.ops:
        if isinstance(operation, OpContainer):
            yield from _leaves(operation)
        else:
            yield operation


def _name(operation: MigrateOperation) -> str | None:
    """Returns the name of the index or the constraint that an operation makes or drops."""
    for attribute in ("index_name", "constraint_name"):
        if name := getattr(operation, attribute, None):
            return str(name)
    return None


def _sql(operation: MigrateOperation) -> str:
    """Returns the statement of an operation in one line."""
    if isinstance(operation, CreateIndexOp | DropIndexOp):
        operation.kw["postgresql_concurrently"] = True
    written = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": written}
    )
    Operations(context).invoke(operation)
    return " ".join(written.getvalue().split()).removesuffix(";")


def _unusable(connection: Connection, tables: Sequence[str]) -> Iterator[Difference]:
    values = {"tables": tables}
    for (index,) in connection.execute(SELECT_INVALID_INDEXES, values):
        yield Difference(
            f"index {index}", "invalid: its build failed", f"REINDEX INDEX CONCURRENTLY {index}"
        )
    for (table,) in connection.execute(SELECT_DISABLED_TRIGGERS, values):
        mend = f"ALTER TABLE {table} ENABLE TRIGGER ALL, as a superuser"
        yield Difference(f"table {table}", "has triggers that are disabled", mend)
    for subject, privileges in connection.execute(SELECT_DENIED, values):
        yield Difference(subject, f"this role may not {privileges}", "run app/deploy/roles.sql")
