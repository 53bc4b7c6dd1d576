"""Runs migrations with asyncpg, one process at a time."""

import asyncio

from alembic import context
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

from app.discovery import find_features
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
        **context.config.attributes.get("autogenerate", {}),
    )
    with context.begin_transaction():
        context.run_migrations()


async def run() -> None:
    engine = new_engine(context.config.attributes["url"], {})
    async with engine.connect() as connection:
        await connection.execute(ONE_MIGRATOR)
        await connection.commit()  # a session-level lock outlives the transaction
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


asyncio.run(run())
