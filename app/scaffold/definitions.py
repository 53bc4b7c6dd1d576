"""Lists what migrations make, and compares its functions and triggers with .sql files."""

import asyncio
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from sqlalchemy.engine import make_url

from app.definitions import SELECT_DEFINITIONS, SELECT_TABLES, file_of, render_definitions
from app.discovery import branches_of, find_features
from app.migrations import ROOT, upgrade


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


def write_definitions(server_url: str, branch: str) -> Path | None:
    """Writes `definitions.sql` of a branch, if it makes any. Returns the file if it has changed."""
    file, text = file_of(branch), list_definitions(server_url, branch)
    if text == (file.read_text() if file.exists() else ""):
        return None
    if text:
        file.write_text(text)
    else:
        file.unlink()
    return file


def list_definitions(server_url: str, branch: str) -> str:
    """Returns the text of `definitions.sql`: the definitions that the branch adds to those of its
    dependencies, or changes. Empty if there are none."""
    features = () if branch == "shared" else find_features(branch)
    needed = [name for name in branches_of(features) if name != branch]
    with scratch_database(server_url) as url:
        if needed:
            upgrade(url, needed)
        before = asyncio.run(_definitions(url))
        upgrade(url, [*needed, branch])
        after = asyncio.run(_definitions(url))
    own = {name: text for name, text in after.items() if before.get(name) != text}
    return render_definitions(own) if own else ""


async def _definitions(url: str) -> dict[str, str]:
    connection = await asyncpg.connect(url)
    try:
        found: dict[str, str] = {}
        for select in (SELECT_TABLES, SELECT_DEFINITIONS):
            found |= dict(map(tuple, await connection.fetch(select)))
        return found
    finally:
        await connection.close()


@contextmanager
def scratch_database(server_url: str) -> Iterator[str]:
    """Creates a database on the server, and drops it after the block."""
    name = f"migration_{secrets.token_hex(4)}"
    asyncio.run(_execute(server_url, f'CREATE DATABASE "{name}"'))
    try:
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    finally:
        asyncio.run(_execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
