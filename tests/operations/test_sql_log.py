"""`APP_LOG_SQL` writes each statement to the log; a traceback has the statement that failed."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import text

from app.main import create_app
from app.ops.sql import SENDING_METHODS
from shared.db import ReadSession, database_of
from shared.settings import Settings
from tests.app_helpers import app_with, capture_log
from tests.kit import connect

CREATE = text("CREATE TEMPORARY TABLE pears (name text) ON COMMIT DROP")
INSERT = text("INSERT INTO pears VALUES (:name)")
THREE_ROWS = text("SELECT generate_series(1, 3)")
MISSPELT = text("SELECT nonsense FROM\n  pg_class")

probe = APIRouter()


@probe.get("/probe/refused")
async def refused(session: ReadSession) -> None:
    await session.fetch(MISSPELT)


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """Without features, whose background work sends statements too."""
    app = create_app(settings, [], run_tasks=False)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"log_sql": True, "log_level": "info", "log_format": "json"})


async def test_each_way_to_the_database_is_logged_with_its_rows(app: FastAPI) -> None:
    database = database_of(app)
    async with database.transaction():
        pass  # the first connection of SQLAlchemy asks for the server's version
    lines = capture_log()
    async with database.transaction() as session:
        await session.execute(CREATE)
        await session.execute(INSERT, {"name": "Conference"})
        await session.execute(INSERT, [{"name": "Williams"}, {"name": "Abate"}])
        await session.copy("pears", ["name"], [("Anjou",)])
        assert len(await session.fetch(THREE_ROWS)) == 3
        orm = await session.orm.connection()
        await orm.execute(text("UPDATE pears SET name = upper(name)"))
        assert len((await orm.execute(text("SELECT name\n FROM pears"))).all()) == 4
    async with database.snapshot() as snapshot:
        async for _ in snapshot.batches(THREE_ROWS, {}, size=2):
            pass
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert {line["event"] for line in logged} == {"sql"}
    assert all(line["ms"] >= 0 for line in logged)
    shown = [(line["statement"], line["rows"]) for line in logged]
    assert shown[:10] == [
        ("BEGIN", 0),
        ("CREATE TEMPORARY TABLE pears (name text) ON COMMIT DROP", 0),
        ("INSERT INTO pears VALUES ($1)", 1),
        ("INSERT INTO pears VALUES ($1)", 2),
        ("COPY pears FROM STDIN", 1),
        ("SELECT generate_series(1, 3)", 3),
        ("UPDATE pears SET name = upper(name)", 4),
        ("SELECT name FROM pears", 4),
        ("COMMIT", 0),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;", 0),
    ]
    assert [rows for statement, rows in shown[10:] if "generate_series" in statement] == [2, 1, 0]
    assert "Conference" not in lines.getvalue(), "a value"


async def test_a_failed_statement_is_logged_with_its_error(app: FastAPI) -> None:
    lines = capture_log()
    with pytest.raises(asyncpg.UndefinedColumnError):
        await database_of(app).read().fetch(MISSPELT)
    (line,) = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert (line["statement"], line["error"]) == (
        "SELECT nonsense FROM pg_class",
        "UndefinedColumnError",
    )


async def test_without_the_setting_and_afterwards_asyncpg_is_as_it_was(settings: Settings) -> None:
    def methods() -> list[Any]:
        return [getattr(kind, name) for kind, name in SENDING_METHODS]

    original = methods()
    async with app_with(settings, probe):
        assert not set(methods()) & set(original)
    assert methods() == original
    async with app_with(settings.model_copy(update={"log_sql": False}), probe):
        assert methods() == original


async def test_a_traceback_in_the_console_has_the_statement(settings: Settings) -> None:
    quiet = settings.model_copy(update={"log_sql": False, "log_format": "console"})
    async with app_with(quiet, probe) as app, connect(app) as client:
        lines = capture_log()
        assert (await client.get("/probe/refused")).status_code == 500
    assert "[SQL: SELECT nonsense FROM\n  pg_class]" in lines.getvalue()
    assert lines.getvalue().count("Traceback") == 1
