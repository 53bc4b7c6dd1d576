"""Runs migrations with asyncpg, one process at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import alembic.runtime.migration
import asyncpg
import structlog
from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, NullPool, text
from sqlmodel import SQLModel

import shared.db.tables  # noqa: F401  # the naming convention, whatever else is imported
from app.discovery import find_features
from app.migrations import BranchRows, known_heads, lock_migrations, without_implied
from migrations.operations import DEFAULT_WAIT_SECONDS
from shared.db.connecting import ServerRole, connector
from shared.db.database import new_engine

POLL_SECONDS = 0.5
SELECT_PID = text("SELECT pg_backend_pid()")
SELECT_BLOCKERS = """
SELECT pid, application_name, state, extract(epoch FROM now() - xact_start)::int AS seconds
FROM unnest(pg_blocking_pids($1)) AS pid LEFT JOIN pg_stat_activity USING (pid) ORDER BY pid
"""
SESSION = {
    "application_name": "tessera migrate",
    # SET LOCAL of a revision ends with its transaction, and an autocommit block begins another.
    "lock_timeout": "5s",
}

log = structlog.get_logger("migrations")

if "autogenerate" in context.config.attributes:
    find_features()  # imports the models, which are compared with the database


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        compare_type=True,
        compare_server_default=True,
        autogenerate_plugins=("alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"),
        transaction_per_migration=True,
        wait_seconds=context.config.attributes.get("wait_seconds", DEFAULT_WAIT_SECONDS),
        **context.config.attributes.get("autogenerate", {}),
    )
    prepare(context.get_context())
    with context.begin_transaction():
        context.run_migrations()


def prepare(migration: MigrationContext) -> None:
    """Shows Alembic the revisions of the database that this code has, as it would fail at others,
    and lets it keep a row for each branch. It has no settings for either."""
    known, plan = known_heads(migration), migration._migrations_fn
    migration.get_current_heads = lambda: known  # type: ignore[method-assign]

    def plan_without_implied(heads: tuple[str, ...], context: MigrationContext) -> Any:
        assert context.script is not None
        assert plan is not None
        return plan(without_implied(heads, context.script), context)

    migration._migrations_fn = plan_without_implied
    alembic.runtime.migration.HeadMaintainer = BranchRows  # type: ignore[misc]


async def run(url: str) -> None:
    connect = connector(url, ServerRole.READ_WRITE, server_settings=SESSION)
    engine = new_engine(connect, poolclass=NullPool)
    async with engine.connect() as connection:
        await lock_migrations(connection)
        pid = (await connection.execute(SELECT_PID)).scalar_one()
        await connection.commit()
        async with blockers_logged(url, pid):
            await connection.run_sync(migrate)
            await connection.commit()


@asynccontextmanager
async def blockers_logged(url: str, pid: int) -> AsyncIterator[None]:
    """Logs, during the block, which sessions the one with this `pid` waits for."""
    task = asyncio.create_task(log_blockers(url, pid))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, OSError, asyncpg.PostgresError):
            await task


async def log_blockers(url: str, pid: int) -> None:
    await asyncio.sleep(POLL_SECONDS)  # most migrations have ended by then
    connection = await connector(url, ServerRole.READ_WRITE, server_settings=SESSION)()
    logged: set[int] = set()
    try:
        while True:
            blockers = await connection.fetch(SELECT_BLOCKERS, pid)
            for blocker in blockers:
                if blocker["pid"] not in logged:
                    log.warning("migration_waits", **dict(blocker))
            logged = {blocker["pid"] for blocker in blockers}
            await asyncio.sleep(POLL_SECONDS)
    finally:
        connection.terminate()


asyncio.run(run(context.config.attributes["url"]))
