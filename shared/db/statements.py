"""SQLAlchemy Core statements, compiled for asyncpg."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ARRAY, Executable, Float, Insert, Update
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine
from sqlmodel import UTCDateTime

CACHED_STATEMENTS = 1_000

FLOAT_OID, NUMERIC_OID = 701, 1700

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


class ConvertedRow(tuple[Any, ...]):
    """A row like asyncpg's own, with the values that SQLAlchemy's types have made."""

    names: tuple[str, ...]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.names.index(key) if isinstance(key, str) else key)

    def __getattr__(self, name: str) -> Any:
        if name not in self.names:
            raise AttributeError(name)
        return self[name]

    def keys(self) -> tuple[str, ...]:
        return self.names


def convert_rows(statement: Executable, rows: list[Any]) -> list[Any]:
    """Returns the rows with the values that the types of their columns make of the driver's, such
    as an Enum of its name; the same rows where the driver's values are right."""
    row_type, processors = _result_processors(statement)
    if not processors:
        return rows
    return [
        row_type(
            process(value) if process else value
            for process, value in zip(processors, row, strict=True)
        )
        for row in rows
    ]


@lru_cache(CACHED_STATEMENTS)
def _result_processors(
    statement: Executable,
) -> tuple[type[ConvertedRow], tuple[Processor | None, ...]]:
    """Returns the type of the rows, and the conversion of each column; none if none needs one."""
    compiler: Any = statement.compile(dialect=DIALECT)  # type: ignore[attr-defined]
    columns = compiler._result_columns
    types = [column.type for column in columns]
    processors = tuple(None if _is_native(each) else _result_processor(each) for each in types)
    names = {"names": tuple(column.keyname for column in columns)}
    return type("Row", (ConvertedRow,), names), processors if any(processors) else ()


def _result_processor(type_: TypeEngine[Any]) -> Processor | None:
    oid = FLOAT_OID if isinstance(type_, Float) else NUMERIC_OID  # only numeric types look at it
    return type_.dialect_impl(DIALECT).result_processor(DIALECT, oid)


def _is_native(type_: TypeEngine[Any]) -> bool:
    """Returns whether asyncpg's value is right, though SQLAlchemy would process it."""
    if isinstance(type_, ARRAY):
        return not type_.as_tuple and _result_processor(type_.item_type) is None
    return isinstance(type_, UTCDateTime)


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
    types = {name: bound.type.dialect_impl(DIALECT) for bound, name in compiler.bind_names.items()}
    processors = {name: type_.bind_processor(DIALECT) for name, type_ in types.items()}
    return compiler, defaults, {name: process for name, process in processors.items() if process}
