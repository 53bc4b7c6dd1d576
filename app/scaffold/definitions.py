"""The functions, triggers and text search configurations of a database, beside those of the .sql
files that a feature keeps."""

import re

import asyncpg

from app.migrations import ROOT

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


async def compare_definitions(url: str, feature: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns all functions, triggers and text search configurations, by name, in the order of
    creation: those of the database, and those it would have if `features/<feature>/sql/*.sql` had
    made the feature's. The names of these begin with the feature's. Changes nothing."""
    files = sorted((ROOT.parent / "features" / feature / "sql").glob("*.sql"))
    connection = await asyncpg.connect(url)
    try:
        found: dict[str, str] = dict(map(tuple, await connection.fetch(SELECT_DEFINITIONS)))
        await connection.execute("BEGIN")  # rolled back at the end
        for name in reversed(found) if files else ():
            if own := re.match(rf"([A-Z ]+) ({feature}(?:_.*)?)$", name):
                await connection.execute(f"DROP {own[1]} IF EXISTS {own[2]} CASCADE")
        for path in files:
            await connection.execute(path.read_text())
        return found, dict(map(tuple, await connection.fetch(SELECT_DEFINITIONS)))
    finally:
        await connection.close()
