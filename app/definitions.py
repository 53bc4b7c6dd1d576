"""The functions, triggers and text search configurations that the migrations make.

`migrations/<branch>/definitions.sql` lists those of a branch as PostgreSQL writes them;
`make definitions` writes it. Any role can compare a database with it, and the owner creates from it
those that a restore has left out.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from app import migrations

SELECT_DEFINITIONS = """
SELECT name, definition FROM (
    SELECT 'pg_proc'::regclass AS catalog, oid, 'FUNCTION ' || oid::regprocedure AS name,
        pg_get_functiondef(oid) AS definition
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind IN ('f', 'p')
    UNION ALL SELECT 'pg_trigger'::regclass, oid,
        format('TRIGGER %I ON %s', tgname, tgrelid::regclass),
        replace(pg_get_triggerdef(oid), 'CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER')
    FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'pg_ts_config'::regclass, oid,
        'TEXT SEARCH CONFIGURATION ' || oid::regconfig,
        (SELECT concat_ws(' ', obj_description(c.oid, 'pg_ts_config'), string_agg(
            concat_ws(' ', maptokentype, mapdict::regdictionary), ', '
            ORDER BY maptokentype, mapseqno)) FROM pg_ts_config_map WHERE mapcfg = c.oid)
    FROM pg_ts_config AS c WHERE cfgnamespace = 'public'::regnamespace
) AS objects
WHERE NOT EXISTS (
    SELECT FROM pg_depend WHERE classid = catalog AND objid = oid AND deptype = 'e')
ORDER BY catalog, oid
"""
"""By name, in the order of creation; without those of extensions."""

HEADING = re.compile(r"^-- ((?:FUNCTION|TRIGGER|TEXT SEARCH CONFIGURATION) .+)\n", re.MULTILINE)
CONFIGURATION = "-- (made by a migration alone: its dictionaries change with the language)"
INTRODUCTION = """\
-- Written by `make definitions`: what these migrations make beside tables. `doctor` compares it
-- with a database, and psql makes it again, as the owner of the tables.
"""


def file_of(branch: str) -> Path:
    return migrations.ROOT / branch / "definitions.sql"


def read_definitions(branches: Iterable[str]) -> dict[str, tuple[str, Path]]:
    """Returns the listed definitions of these branches by name, each with its file. That of a text
    search configuration, which changes with the language, is empty."""
    listed: dict[str, tuple[str, Path]] = {}
    for file in filter(Path.exists, map(file_of, branches)):
        _, *parts = HEADING.split(file.read_text())
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            made = "" if text.strip() == CONFIGURATION else text.strip().removesuffix(";").strip()
            listed[name] = made, file
    return listed


def render_definitions(definitions: dict[str, str]) -> str:
    """Returns the text of a file with these definitions."""
    parts = (
        f"-- {name}\n{CONFIGURATION if name.startswith('TEXT') else text.strip() + chr(10) + ';'}\n"
        for name, text in definitions.items()
    )
    return "\n".join([INTRODUCTION, *parts])
