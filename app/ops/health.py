"""Health probes: whether the process is alive, and whether it can serve requests."""

import asyncio
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from weakref import WeakKeyDictionary

import anyio
import structlog
from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from app.migrations import SchemaState, describe_unknown, schema_state
from shared.db.connecting import NoHostInRole
from shared.db.errors import CONNECT_ERRORS, READ_ONLY
from shared.problems import Unavailable, responses
from shared.state import state_of
from shared.tasks import Task

READINESS_TIMEOUT_SECONDS = 1.5
HEARTBEAT_SECONDS = 5.0

log = structlog.get_logger(__name__)
router = APIRouter(tags=["health"])

_asking: "WeakKeyDictionary[FastAPI, asyncio.Task[SchemaState]]" = WeakKeyDictionary()
"""The check that is under way: all who ask share it, so that no number of them delays it."""


class Health(BaseModel):
    status: str = Field(default="ok", examples=["ok"])


class Readiness(Health):
    unknown_migrations: list[str] | None = Field(
        default=None,
        description="What the database has and this code has not: migrations of newer code, or of "
        "a feature that has been removed. The process serves all the same.",
        examples=[["orders_0002"]],
    )


@router.get("/healthz")
async def alive() -> Health:
    """Whether the process answers at all; asks nothing of anything else."""
    return Health()


@router.get("/readyz", responses=responses(Unavailable), response_model_exclude_none=True)
async def ready(request: Request) -> Readiness:
    """Whether the database can be read and written within 1.5 s, its schema is not behind the code,
    and the process is not about to stop."""
    if state_of(request.app).is_stopping:
        raise Unavailable("This process is about to stop")
    schema = await check(request.app)
    return Readiness(unknown_migrations=schema.unknown or None)


async def check(app: FastAPI) -> SchemaState:
    """Checks that the database serves in time, and that its schema is not behind the code.

    Raises:
        Unavailable: the database does not answer or is read-only, or its schema is behind the code.
    """
    schema = await read_schema(app)
    if schema.pending:
        raise Unavailable(f"The database lacks the migrations {', '.join(schema.pending)}")
    return schema


async def read_schema(app: FastAPI) -> SchemaState:
    """Compares the migrations of the database with those of the code.

    Raises:
        Unavailable: the database does not answer in time, or is read-only.
    """
    asking = _asking.get(app)
    if asking is None or asking.done():
        asking = _asking[app] = asyncio.create_task(_schema_state(app), context=Context())
        asking.add_done_callback(_retrieve_exception)
    await asyncio.wait({asking}, timeout=READINESS_TIMEOUT_SECONDS)
    if not asking.done() or asking.cancelled():
        asking.cancel()  # not awaited: to close a connection to a frozen server takes seconds
        if _asking.get(app) is asking:
            del _asking[app]
        log.warning("not_ready", error=f"no answer within {READINESS_TIMEOUT_SECONDS:g} s")
        raise Unavailable("The database does not answer")
    try:
        return asking.result()
    except (*CONNECT_ERRORS, SQLAlchemyError) as error:
        log.warning("not_ready", error=repr(error))
        if isinstance(error, NoHostInRole):
            raise Unavailable(READ_ONLY) from None
        raise Unavailable("The database does not answer") from None
    except Unavailable as error:
        log.warning("not_ready", error=repr(error.__cause__ or error))
        raise


async def warn_of_unknown_migrations(app: FastAPI) -> None:
    """Logs what the database has and this code has not, if the database answers."""
    with suppress(Unavailable):
        for revision in (await read_schema(app)).unknown:
            detail = describe_unknown(revision, state_of(app).revisions)
            log.warning("unknown_migration", detail=detail)


def _retrieve_exception(asked: "asyncio.Task[SchemaState]") -> None:
    """Retrieves the exception of an abandoned check, which asyncio would otherwise log."""
    if not asked.cancelled():
        asked.exception()


async def _schema_state(app: FastAPI) -> SchemaState:
    async with state_of(app).database.probe() as connection:
        return await connection.run_sync(schema_state, state_of(app).revisions)


def heartbeat(file: Path) -> Task:
    """Returns a task that touches a file while `check` passes.

    The age of the file is the probe of a process without HTTP.
    """

    async def beat(app: FastAPI) -> int:
        with suppress(Unavailable):
            await check(app)
            await anyio.Path(file).touch()
        return 0

    return Task(name="heartbeat", run=beat, every=HEARTBEAT_SECONDS)
