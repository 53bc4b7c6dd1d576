"""Conventions of all tables: constraint names, ids in order of creation, timestamps."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

import uuid_utils.compat
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Table, func
from sqlmodel import Field, SQLModel
from sqlmodel.main import default_registry

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


def uuid7() -> UUID:
    """Returns a UUIDv7 (RFC 9562): unique, and in order of creation."""
    return uuid_utils.compat.uuid7()


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
            "onupdate": func.clock_timestamp(),
        },
    )
