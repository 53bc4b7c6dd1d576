"""Compares with a database what Alembic does not: the values of the enum types that models use, and
the text of their check constraints."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from alembic.operations.ops import (
    CreateCheckConstraintOp,
    DropConstraintOp,
    ExecuteSQLOp,
    MigrateOperation,
)
from sqlalchemy import ARRAY, CheckConstraint, Connection, Enum, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import AddConstraint, DropConstraint
from sqlmodel import SQLModel

from shared.feature import FeatureError

SELECT_ENUMS = text("""
SELECT typname, array_agg(enumlabel::text ORDER BY enumsortorder), EXISTS (
    SELECT FROM pg_attribute WHERE attrelid::regclass::text = ANY(:tables)
    AND attnum > 0 AND atttypid IN (type.oid, type.typarray))
FROM pg_type AS type JOIN pg_enum ON enumtypid = type.oid
WHERE typnamespace = 'public'::regnamespace GROUP BY type.oid ORDER BY typname
""")
SELECT_CHECKS = text("""
SELECT conname, pg_get_expr(conbin, conrelid) FROM pg_constraint
WHERE contype = 'c' AND conrelid = to_regclass(quote_ident(:table))
""")

Operations: TypeAlias = list[MigrateOperation]


@dataclass
class Changes:
    """The operations of a revision that go before and after those that Alembic has found."""

    before_upgrade: Operations = field(default_factory=list)
    after_upgrade: Operations = field(default_factory=list)
    before_downgrade: Operations = field(default_factory=list)
    after_downgrade: Operations = field(default_factory=list)


def compare_models(connection: Connection, tables: Collection[str]) -> Changes:
    """Returns the changes of enum types and check constraints of these tables. Changes nothing.

    Raises:
        FeatureError: a value of an enum type is gone, or has moved, which PostgreSQL cannot do.
    """
    models = [SQLModel.metadata.tables[name] for name in sorted(tables)]
    changes = Changes()
    _compare_enums(connection, models, changes)
    _compare_checks(connection, models, changes)
    return changes


def _compare_enums(connection: Connection, models: Iterable[Table], changes: Changes) -> None:
    types = [column.type for table in models for column in table.columns]
    types = [each.item_type if isinstance(each, ARRAY) else each for each in types]
    wanted = {
        str(each.name): each.enums for each in types if isinstance(each, Enum) and each.native_enum
    }
    rows = connection.execute(SELECT_ENUMS, {"tables": [table.name for table in models]}).all()
    found = {name: values for name, values, _ in rows}
    for name, values in wanted.items():
        if name in found:
            changes.before_upgrade += _added_values(name, found[name], values)
        else:
            changes.before_upgrade.append(_create_type(name, values))
            changes.after_downgrade.append(ExecuteSQLOp(f"DROP TYPE {name}"))
    for name, values, is_used in rows:
        if is_used and name not in wanted:
            changes.after_upgrade.append(ExecuteSQLOp(f"DROP TYPE {name}"))
            changes.before_downgrade.append(_create_type(name, values))


def _create_type(name: str, values: Sequence[str]) -> ExecuteSQLOp:
    return ExecuteSQLOp(f"CREATE TYPE {name} AS ENUM ({', '.join(map(_literal, values))})")


def _added_values(name: str, old: Sequence[str], new: Sequence[str]) -> Iterator[ExecuteSQLOp]:
    """Yields what adds the new values; a downgrade leaves them, as PostgreSQL drops none."""
    if [value for value in new if value in old] != list(old):
        raise FeatureError(
            f"the enum type {name} has lost or moved values: from {', '.join(old)}"
            f" to {', '.join(new)}. PostgreSQL can only add some: write the revision by hand"
        )
    for position, value in enumerate(new):
        if value not in old:
            place = (
                f"AFTER {_literal(new[position - 1])}" if position else f"BEFORE {_literal(old[0])}"
            )
            yield ExecuteSQLOp(
                f"ALTER TYPE {name} ADD VALUE IF NOT EXISTS {_literal(value)} {place}"
            )


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _compare_checks(connection: Connection, models: Iterable[Table], changes: Changes) -> None:
    for table in models:
        found = dict(map(tuple, connection.execute(SELECT_CHECKS, {"table": table.name})))
        for constraint in _checks(table):
            name = str(constraint.name)
            if name in found and _text_in(connection, constraint) != found[name]:
                drop = DropConstraintOp(constraint.name, table.name, "check")
                old = CreateCheckConstraintOp(constraint.name, table.name, text(found[name]))
                changes.before_upgrade.append(drop)
                changes.after_upgrade.append(CreateCheckConstraintOp.from_constraint(constraint))
                changes.before_downgrade.append(drop)
                changes.after_downgrade.insert(0, old)


def _checks(table: Table) -> list[CheckConstraint]:
    """Returns the check constraints with a name, in the order of the names."""
    checks = (each for each in table.constraints if isinstance(each, CheckConstraint))
    return sorted((check for check in checks if check.name), key=lambda check: str(check.name))


def _text_in(connection: Connection, constraint: CheckConstraint) -> str | None:
    """Returns the text of the constraint as PostgreSQL writes it; None if a column is missing."""
    table = {"table": constraint.table.name}
    savepoint = connection.begin_nested()
    try:
        connection.execute(DropConstraint(constraint))
        connection.execute(AddConstraint(constraint, isolate_from_table=False))
        found: dict[str, str] = dict(map(tuple, connection.execute(SELECT_CHECKS, table)))
        return found[str(constraint.name)]
    except DBAPIError:
        return None
    finally:
        savepoint.rollback()
