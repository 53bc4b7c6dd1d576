"""The database of development: it starts by itself, migrated and with a demo."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager

import structlog
from fastapi import FastAPI
from sqlalchemy import text

from app.discovery import extensions_of, find_features, new_database
from app.embedded import embedded_postgres, ensure_database
from app.main import create_app
from app.migrations import upgrade
from app.ops.health import check
from shared.db import Database
from shared.db.locks import advisory_lock
from shared.feature import Feature
from shared.problems import Unavailable
from shared.settings import DATA, Settings, load_settings
from shared.state import state_of

DATABASE = "tessera"
LOCK_DEMO = text(f"SELECT pg_advisory_xact_lock({advisory_lock('app.demo')})")
EMBEDDED = DATA / "postgres"

log = structlog.get_logger(__name__)


@contextmanager
def running_database(settings: Settings | None = None) -> Iterator[Settings]:
    """Yields the settings with the URL of a running database.

    Where no URL is set, in development, it starts the embedded PostgreSQL under `.data/`, or
    shares the one that already runs.
    """
    settings = settings or load_settings(Settings)
    if settings.database_url:
        yield settings
        return
    with embedded_postgres(EMBEDDED) as server:
        url = asyncio.run(ensure_database(server, DATABASE, extensions_of(find_features())))
        yield settings.model_copy(update={"database_url": url})


@contextmanager
def database_of_command(found: Sequence[Feature] | None = None) -> Iterator[Database]:
    """Yields the database of a command, with the subscriptions of all features, or of these."""
    with running_database() as settings:
        yield new_database(settings, find_features() if found is None else found)


def prepare_database(settings: Settings, features: Sequence[Feature]) -> None:
    """Migrates the database, and adds the demo of each feature without rows. Safe in many processes
    at once, but not in two threads of one."""
    assert settings.database_url
    upgrade(settings.database_direct_url or settings.database_url)
    asyncio.run(load_demo(settings, features))


async def load_demo(settings: Settings, features: Sequence[Feature]) -> None:
    """Adds the demo rows of each feature that has no rows yet, in one transaction."""
    database = new_database(settings, features)
    try:
        async with database.transaction() as session:
            await session.execute(LOCK_DEMO)
            for feature in features:
                if feature.demo:
                    await feature.demo.load(session.orm)
    finally:
        await database.dispose()


def development_app(settings: Settings) -> FastAPI:
    """Creates the application for development: it needs no `APP_DATABASE_URL`, and a request may
    take any time, as a debugger may hold it.

    Where no URL is set it uses the embedded PostgreSQL while it runs, migrated. It migrates no
    other database at its start, which may be a reload: the log lists the pending revisions.
    """
    if "request_timeout" not in settings.model_fields_set:
        settings = settings.model_copy(update={"request_timeout": None})
    app = create_app(settings)
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def with_database(app: FastAPI) -> AsyncIterator[None]:
        state = state_of(app)
        with ExitStack() as stack:
            if state.settings.database_url is None:
                # In threads: they block, and run their own event loops.
                running = running_database(state.settings)
                state.settings = await asyncio.to_thread(stack.enter_context, running)
                await asyncio.to_thread(prepare_database, state.settings, state.features)
            async with lifespan(app):
                await _report_pending_migrations(app)
                yield

    app.router.lifespan_context = with_database
    return app


async def _report_pending_migrations(app: FastAPI) -> None:
    try:
        await check(app)
    except Unavailable as problem:
        log.warning("not_ready", reason=problem.detail, mend="python -m app migrate")
