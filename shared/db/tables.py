"""Conventions of all tables: constraint names, ids in order of creation, timestamps."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

import uuid_utils.compat
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Table, TextClause, func, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlmodel import Field, SQLModel, UTCDateTime
from sqlmodel.main import default_registry

if TYPE_CHECKING:
    from shared.db.sessions import WriteSession

OWNED_ROWS_PER_BATCH = 5_000

# A constraint's name has its table and columns, so that a violation can be put into words.
SQLModel.metadata.naming_convention = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}


def table_owners() -> dict[str, str]:
    """Returns the tables of all imported models, each with its feature, or `shared`."""
    found: dict[str, str] = {}
    for mapper in default_registry.mappers:
        package, *module = mapper.class_.__module__.split(".")
        found[str(mapper.local_table)] = module[0] if package == "features" else package
    return found


def table_of(model: type[SQLModel]) -> Table:
    """Returns the table of a model: a statement on it returns rows, and builds no objects."""
    table: Table = model.__table__  # type: ignore[attr-defined]
    return table


def columns(table: Table, schema: type[BaseModel]) -> list[ColumnElement[Any]]:
    """Returns the columns that are fields of the schema."""
    return [table.c[name] for name in schema.model_fields]


async def delete_owned_rows(session: "WriteSession", table: Table, owner_id: UUID) -> int:
    """Deletes a batch of the rows of an owner; returns how many, 0 when none is left.

    The primary key of the table begins with `owner_id`, as that of each private table does.
    """
    select_keys, delete_keys = _statements_on_owned_rows(table)
    rows = await session.fetch(select_keys, {"owner": owner_id, "rows": OWNED_ROWS_PER_BATCH})
    if not rows:
        return 0
    return await session.execute(delete_keys, {"owner": owner_id, "keys": [row[0] for row in rows]})


@cache
def _statements_on_owned_rows(table: Table) -> tuple[TextClause, TextClause]:
    # Two statements: in one, a planner with statistics from before an import reads all rows of the
    # owner for each row that it deletes.
    _owner, *others = table.primary_key.columns.keys()
    key, name = others[0] if others else "owner_id", table.name
    return (
        text(f"SELECT {key} FROM {name} WHERE owner_id = :owner LIMIT :rows"),  # noqa: S608
        text(f"DELETE FROM {name} WHERE owner_id = :owner AND {key} = ANY (:keys)"),  # noqa: S608
    )


def uuid7() -> UUID:
    """Returns a UUIDv7 (RFC 9562): unique, and in order of creation."""
    return uuid_utils.compat.uuid7()


def first_uuid7(time: datetime) -> UUID:
    """Returns an id that is greater than those made before this millisecond, and less than those
    made since: a UUIDv7 begins with its time (RFC 9562, section 5.7)."""
    return UUID(int=int(time.timestamp() * 1_000) << 80)


class UpdateTime(FunctionElement[datetime]):
    """The time of an UPDATE, for the column `updated_at`: later than the one before in each row,
    even if the clock is set back, or the statement had to wait for the row.

    Not `clock_timestamp()`: an UPDATE of a distributed table takes no volatile function.
    """

    name, type, inherit_cache = "update_time", UTCDateTime(), True


@compiles(UpdateTime)
def _compile_update_time(_: UpdateTime, compiler: SQLCompiler, **_options: Any) -> str:
    table = compiler.current_executable.table  # of an Insert or Update
    before = f"{compiler.preparer.format_table(table)}.updated_at"
    return later("statement_timestamp()", before)


def later(time: str, before: str) -> str:
    """Returns the SQL of this time, or of the microsecond after the one before if that is later.

    In UTC, as a distributed table takes nothing in ON CONFLICT that depends on settings.
    """
    return f"greatest({time}, ({before} AT TIME ZONE 'UTC' + '1 microsecond') AT TIME ZONE 'UTC')"


class Timestamped(SQLModel):
    """The times when a row was created and last changed, by the clock of the database.

    The INSERT or UPDATE itself returns them (RETURNING).
    """

    __mapper_args__: ClassVar[Mapping[str, Any]] = {"eager_defaults": True}

    created_at: datetime = Field(
        default=None,
        nullable=False,
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )
    updated_at: datetime = Field(
        default=None,
        nullable=False,
        sa_column_kwargs={
            "server_default": func.clock_timestamp(),
            "onupdate": UpdateTime(),
        },
    )
