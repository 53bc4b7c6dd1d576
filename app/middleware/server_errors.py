"""The answer to an exception that nothing else has handled."""

import structlog
from asyncpg import PostgresError
from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problem_details import content_too_large, internal_error
from shared.db.errors import DatabaseError, database_cause

UNDEFINED_STATES = {"42704", "42883", "42P01", "42703"}  # an object, a function, a table, a column

log = structlog.get_logger("request")


class ServerErrorMiddleware:
    """Logs an unhandled exception and answers with a 500 problem, without its details.

    Also turns Starlette's plain-text 413 into a problem.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                if replaced := _is_plain_413(message):
                    await content_too_large(Request(scope))(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self.app(scope, receive, send_problem)
        except ClientDisconnect:
            pass  # the client has gone
        except Exception as error:
            log.exception("unhandled_error", **_advice(error))
            if started:  # too late for another response: the server closes the connection
                raise
            await internal_error(Request(scope))(scope, receive, send)


def _advice(error: Exception) -> dict[str, str]:
    """Returns more fields for the log if the database lacks a table or function of a statement."""
    cause = database_cause(error) if isinstance(error, DatabaseError) else None
    if isinstance(cause, PostgresError) and cause.sqlstate in UNDEFINED_STATES:
        return {"missing": str(cause).splitlines()[0], "advice": "python -m app doctor"}
    return {}


def _is_plain_413(start: Message) -> bool:
    """Returns whether Starlette itself rejects a Content-Length beyond the limit, in plain text."""
    if start["status"] != 413:
        return False
    return Headers(raw=start["headers"]).get("content-type", "").startswith("text/plain")
