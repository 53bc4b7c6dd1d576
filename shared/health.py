"""Probes that tell the truth: is the process alive, and can it serve?"""

import asyncio

import structlog
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from shared.database import database_of
from shared.errors import Problem, Unavailable, responses
from shared.migrations import pending

READINESS_TIMEOUT_SECONDS = 1.5

log = structlog.get_logger(__name__)
router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str = Field(default="ok", examples=["ok"])


@router.get("/healthz")
async def alive() -> Health:
    """Whether the process answers at all; asks nothing of anything else."""
    return Health()


@router.get("/readyz", responses=responses(Unavailable))
async def ready(request: Request) -> Health:
    """Whether the database answers within 1.5 s and its schema is not behind the code."""
    try:
        async with asyncio.timeout(READINESS_TIMEOUT_SECONDS):
            behind = await _behind(request)
    except (OSError, TimeoutError, SQLAlchemyError, Problem) as error:
        log.warning("not_ready", error=repr(error))
        raise Unavailable("The database does not answer") from None
    if behind:
        raise Unavailable(f"The database lacks the migrations {', '.join(behind)}")
    return Health()


async def _behind(request: Request) -> list[str]:
    async with database_of(request.app).write.connect() as connection:
        return await connection.run_sync(pending, request.app.state.expected_heads)
