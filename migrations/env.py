"""Runs migrations with asyncpg, one process at a time."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

from app.discovery import find_features
from app.migrations import known_heads, record_branches, without_implied
from shared.db.database import new_engine
from shared.db.locks import advisory_lock

ONE_MIGRATOR = text(f"SELECT pg_advisory_lock({advisory_lock('shared.migrations')})")

if "autogenerate" in context.config.attributes:
    find_features()  # imports the models, which are compared with the database


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
        on_version_apply=record,
        **context.config.attributes.get("autogenerate", {}),
    )
    show_known_heads(context.get_context())
    with context.begin_transaction():
        context.run_migrations()


def record(
    ctx: MigrationContext, step: MigrationInfo, heads: Collection[str], run_args: Mapping[str, Any]
) -> None:
    """Runs after each revision, in its transaction."""
    record_branches(ctx, heads)


def show_known_heads(migration: MigrationContext) -> None:
    """Shows Alembic the revisions of the database that this code has: it would fail at others, and
    where it plans what to run, at a head that another depends on."""
    known, plan = tuple(known_heads(migration)), migration._migrations_fn
    migration.get_current_heads = lambda: known  # type: ignore[method-assign]

    def plan_without_implied(heads: tuple[str, ...], context: MigrationContext) -> Any:
        assert context.script is not None
        assert plan is not None
        return plan(without_implied(heads, context.script), context)

    migration._migrations_fn = plan_without_implied


async def run() -> None:
    engine = new_engine(context.config.attributes["url"], {})
    async with engine.connect() as connection:
        await connection.execute(ONE_MIGRATOR)
        await connection.commit()  # a session-level lock outlives the transaction
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


asyncio.run(run())
