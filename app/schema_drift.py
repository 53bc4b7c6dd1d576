"""Compares a database with what the migrations make: with each `definitions.sql`.

A restore may have left something out, the build of an index may have failed, or an operator may
have changed something by hand. It only reads catalogs, so any role may do it, on a standby too.
Additions, such as an operator's own index, are no difference, unless the service's statements do
something else because of them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sqlalchemy import Connection, text

from app.definitions import BLOCKS, SELECT_DEFINITIONS, SELECT_TABLES, read_definitions
from app.discovery import branches_of
from app.migrations import ROOT, SchemaState, branch_of
from shared.feature import Feature

Listed: TypeAlias = dict[str, tuple[str, Path]]
"""Definitions by name, each with the file that lists it."""

NAME = re.compile(r"(?P<kind>[A-Z ]+) (?P<object>.+?)(?: ON (?P<table>.+))?\Z", re.DOTALL)
RESTORE = "restore it from a backup"
INVALID = " INVALID"
HARMFUL = re.compile(r"^(RULE|POLICY) |(SET NOT NULL, DROP DEFAULT| INVALID)$")
VARCHAR = r"'(?:[^']|'')*'::character varying"
ARRAY_OF_VARCHAR = re.compile(rf"\((ARRAY\[{VARCHAR}(?:, {VARCHAR})*\])\)::text\[\]")
STORAGE_PARAMETERS = re.compile(r" WITH \([^()]*\)")  # an operator tunes them
SET_QUOTING = text("""
SELECT set_config('quote_all_identifiers', 'off', true),
    set_config('standard_conforming_strings', 'on', true)
""")
"""Sets how PostgreSQL quotes in this transaction: a role or a server may have it otherwise."""
SELECT_PRIVILEGES = text("""
WITH privileges (subject, privilege, needed, held) AS (
    SELECT 'table ' || oid::regclass, privilege,
        privilege IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE'), has_table_privilege(oid, privilege)
    FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES',
        'TRIGGER']) AS privilege
    WHERE oid::regclass::text = ANY (:tables)
    UNION ALL SELECT 'function ' || oid::regprocedure, 'EXECUTE', true,
        has_function_privilege(oid, 'EXECUTE')
    FROM pg_proc WHERE oid::regprocedure::text = ANY (:functions)
    AND prorettype <> 'trigger'::regtype  -- a trigger asks nobody
    UNION ALL SELECT 'schema public', privilege, privilege = 'USAGE',
        has_schema_privilege('public', privilege)
    FROM unnest(ARRAY['USAGE', 'CREATE']) AS privilege
), wrong AS (
    SELECT subject, needed, string_agg(privilege, ', ') AS privileges FROM privileges
    WHERE needed <> held GROUP BY subject, needed
)
SELECT subject, CASE WHEN needed THEN 'may not ' ELSE 'may also ' END || privileges FROM wrong
WHERE needed OR NOT EXISTS (  -- an owner may do everything
    SELECT FROM pg_class
    WHERE oid::regclass::text = ANY (:tables) AND pg_has_role(relowner, 'USAGE'))
ORDER BY 1, 2
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
    listed = read_definitions(branch for branch in branches_of(features) if branch not in newer)
    found: dict[str, str] = {}
    connection.execute(SET_QUOTING)
    for select in (SELECT_TABLES, SELECT_DEFINITIONS):
        found |= dict(map(tuple, connection.execute(text(select))))
    return [
        *_different(listed, found),
        *_harmful(listed, found),
        *_privileges(connection, listed),
    ]


def _different(listed: Listed, found: dict[str, str]) -> Iterator[Difference]:
    """Yields what is not as it is listed, without the parts of a table that is missing."""
    for name, (expected, file) in listed.items():
        _, _, table = _parse(name)
        actual = found.get(name)
        if actual is None:
            if not table or f"TABLE {table}" in found:
                yield Difference(_subject(name), "missing", _mend(name, expected, "", file))
        elif expected and _comparable(actual) != _comparable(expected):
            mend = _mend(name, expected, actual, file)
            yield Difference(_subject(name), _contrast(name, expected, actual), mend)


def _harmful(listed: Listed, found: dict[str, str]) -> Iterator[Difference]:
    """Yields what has been added to a listed table and changes, rejects or slows its statements."""
    for name, definition in found.items():
        kind, part, table = _parse(name)
        added = name not in listed and f"TABLE {table}" in listed
        if added and HARMFUL.search(f"{name}: {definition}"):
            mend = f"DROP {name}"
            if kind == "COLUMN":
                mend = f"ALTER TABLE {table} ALTER {part} DROP NOT NULL"
            elif kind == "INDEX":
                of_constraint = f"CONSTRAINT {part} ON {table}" in found
                mend = f"{'REINDEX' if of_constraint else 'DROP'} INDEX CONCURRENTLY {part}"
            yield Difference(_subject(name), f"{definition}, by no migration", mend)


def _privileges(connection: Connection, listed: Listed) -> Iterator[Difference]:
    parsed = list(map(_parse, listed))
    values = {
        "tables": [part for kind, part, _ in parsed if kind == "TABLE"],
        "functions": [part for kind, part, _ in parsed if kind == "FUNCTION"],
    }
    for subject, privileges in connection.execute(SELECT_PRIVILEGES, values):
        yield Difference(subject, f"this role {privileges}", "run app/deploy/roles.sql")


def _mend(name: str, expected: str, actual: str, file: Path) -> str:
    """Returns what makes the object as expected: a statement, or a command. It changes no rows."""
    kind, part, table = _parse(name)
    folder = file.parent.relative_to(ROOT.parent)
    wanted, _ = _unequal_actions(kind, expected, actual)
    match kind:
        case "TABLE" | "COLUMN" if not actual:
            return RESTORE
        case "TABLE":
            superuser = ", as a superuser" if wanted[-1].endswith("TRIGGER ALL") else ""
            return f"ALTER TABLE {part} {', '.join(wanted)}{superuser}"
        case "COLUMN":
            return f"ALTER TABLE {table} {', '.join(f'ALTER {part} {each}' for each in wanted)}"
        case "CONSTRAINT":
            drop = f"DROP CONSTRAINT {part}, " if actual else ""
            return f"ALTER TABLE {table} {drop}ADD CONSTRAINT {part} {expected}"
        case "INDEX" if actual == expected + INVALID:
            return f"REINDEX INDEX CONCURRENTLY {part}"
        case "INDEX":
            drop = f"DROP INDEX CONCURRENTLY {part}; " if actual else ""
            return drop + expected.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)
        case "FUNCTION" | "TRIGGER":
            return f'psql "$OWNER_URL" --file={folder / file.name}'
        case _:
            return f"make it as {folder} does"


def _contrast(name: str, expected: str, actual: str) -> str:
    """Returns what is found and what is expected, if that can be said in a line."""
    kind, _, _ = _parse(name)
    if kind in BLOCKS:
        return "not as the migrations make it"
    if actual == expected + INVALID:
        return "invalid: its build failed"
    if kind in ("TABLE", "COLUMN"):
        wanted, have = _unequal_actions(kind, expected, actual)
        return f"{', '.join(have)} instead of {', '.join(wanted)}"
    return f"{actual} instead of {expected}"


def _unequal_actions(kind: str, expected: str, actual: str) -> tuple[list[str], list[str]]:
    """Returns what ALTER does to a table or a column: what is expected alone, and what is found."""
    limit = 2 if kind == "COLUMN" else -1  # its third is a default, which may have commas
    wanted, have = (each.split(", ", limit) for each in (expected, actual))
    return [x for x in wanted if x not in have], [x for x in have if x not in wanted]


def _comparable(definition: str) -> str:
    """Returns what PostgreSQL writes of the definition once pg_dump has restored it, which makes a
    cast of an array one of each element; without storage parameters."""
    elements = ARRAY_OF_VARCHAR.sub(
        lambda array: re.sub(VARCHAR, r"(\g<0>)::text", array[1]), definition
    )
    return STORAGE_PARAMETERS.sub("", elements).strip()


def _parse(name: str) -> tuple[str, str, str | None]:
    """Returns the kind of an object, its name, and its table, if it is a part of one."""
    matched = NAME.match(name)
    assert matched
    return matched["kind"], matched["object"], matched["table"]


def _subject(name: str) -> str:
    kind, _, _ = _parse(name)
    return kind.lower() + name.removeprefix(kind)
