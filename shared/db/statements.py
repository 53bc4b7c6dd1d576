"""SQLAlchemy Core statements, compiled for asyncpg."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Executable, Insert, Update
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql.compiler import SQLCompiler

CACHED_STATEMENTS = 1_000

DIALECT = dialect()  # type: ignore[no-untyped-call]


def compile_statement(statement: Executable, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Returns the SQL of a statement, and its arguments in order.

    An INSERT or UPDATE sets the columns that are named in `values`.

    Raises:
        InvalidRequestError: a parameter has no value.
        ArgumentError: the statement has `in_` with a list, which only SQLAlchemy itself can send.
    """
    columns = tuple(values) if isinstance(statement, Insert | Update) else None
    compiler, defaults, processors = _compiler(statement, columns)
    parameters = compiler.construct_params(values)
    for name, default in defaults.items():
        parameters[name] = default.arg if default.is_scalar else default.arg(None)
    for name, process in processors.items():
        parameters[name] = process(parameters[name])
    return compiler.string, [parameters[name] for name in compiler.positiontup or ()]


def compile_many(
    statement: Executable, rows: Sequence[Mapping[str, Any]]
) -> tuple[str, list[list[Any]]]:
    """Returns the SQL of a statement, and its arguments for each row; raises as
    `compile_statement` does.

    Raises:
        ArgumentError: the rows have different keys.
    """
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ArgumentError("All rows need the same keys")
    compiled = [compile_statement(statement, row) for row in rows]
    return compiled[0][0], [arguments for _, arguments in compiled]


Processor = Callable[[Any], Any]


@lru_cache(CACHED_STATEMENTS)
def _compiler(
    statement: Executable, columns: tuple[str, ...] | None
) -> tuple[SQLCompiler, Mapping[str, Any], Mapping[str, Processor]]:
    """Compiles a statement, and collects the steps that SQLAlchemy adds when it sends one: column
    defaults that are computed in Python, and the conversion of values by their types."""
    compiler = statement.compile(dialect=DIALECT, column_keys=columns)  # type: ignore[attr-defined]
    assert isinstance(compiler, SQLCompiler)
    if compiler.post_compile_params:
        raise ArgumentError("Instead of in_(), compare with any_() of an array")
    defaults = {column.key: column.default for column in compiler.insert_prefetch}
    defaults |= {column.key: column.onupdate for column in compiler.update_prefetch}
    types = {name: bound.type.dialect_impl(DIALECT) for name, bound in compiler.binds.items()}
    processors = {name: type_.bind_processor(DIALECT) for name, type_ in types.items()}
    return compiler, defaults, {name: process for name, process in processors.items() if process}
