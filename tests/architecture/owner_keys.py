"""Checks in the models that a private table can be distributed by its owner (decision 0013).

A private table is one with a column `owner_id`. Its primary key, its unique constraints and indexes
begin with that, and so do its foreign keys, which refer to private tables. Any other table that it
refers to is declared, with the reason, in REFERENCE_TABLES of the feature's `tests/constraints.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)
from sqlmodel import SQLModel

from app.discovery import find_features
from tests.declarations import declared

OWNER = "owner_id"
MAX_NAME = 54
"""PostgreSQL's 63 characters, without those of the number of a shard: a violated constraint is
recognised by its name."""


def check_keys() -> tuple[list[str], list[str]]:
    """Returns the private tables, and a line for each key that does not begin with the owner."""
    find_features()  # imports them
    reference = declared("constraints", "REFERENCE_TABLES")
    private = [table for table in SQLModel.metadata.sorted_tables if OWNER in table.c]
    violations = [line for table in private for line in _violations(table, reference)]
    return [table.name for table in private], violations


def _violations(table: Table, reference: Mapping[str, str]) -> Iterator[str]:
    unique = [each for each in table.constraints if isinstance(each, UniqueConstraint)]
    keys: list[PrimaryKeyConstraint | UniqueConstraint | Index]
    keys = [table.primary_key, *unique, *(each for each in table.indexes if each.unique)]
    for key in keys:
        if not _begins_with_owner(list(key.columns)):
            yield f"{key.name} of {table.name} must begin with {OWNER}: {_names(key.columns)}"
        if len(str(key.name)) > MAX_NAME:
            yield f"{key.name} of {table.name} is longer than {MAX_NAME} characters"
    for constraint in table.constraints:
        if isinstance(constraint, ForeignKeyConstraint):
            yield from _foreign_key_violations(table, constraint, reference)


def _foreign_key_violations(
    table: Table, key: ForeignKeyConstraint, reference: Mapping[str, str]
) -> Iterator[str]:
    other = key.referred_table
    if OWNER not in other.c:
        if other.name not in reference:
            yield (
                f"{key.name} of {table.name} refers to {other.name}, which has no {OWNER}: delete"
                f" rows by a Subscription instead, or declare {other.name} in REFERENCE_TABLES"
            )
    elif not (
        _begins_with_owner(list(key.columns))
        and _begins_with_owner([element.column for element in key.elements])
    ):
        yield f"{key.name} of {table.name} must begin with {OWNER}, on both sides"


def _begins_with_owner(columns: Sequence[Column[Any]]) -> bool:
    return bool(columns) and columns[0].name == OWNER


def _names(columns: Any) -> str:
    return ", ".join(column.name for column in columns)
