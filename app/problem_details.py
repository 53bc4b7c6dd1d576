"""Errors as problem details (RFC 9457): one JSON shape for every failure.

A handler raises a `Problem`. Every other failure of a request (validation, the framework's own
404, a unique violation, a lost database connection) is translated into one here.
"""

from collections.abc import Mapping, Sequence
from http import HTTPMethod, HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from asyncpg import PostgresError
from fastapi import FastAPI, Request
from fastapi.exceptions import (
    RequestValidationError,
    ValidationException,
    WebSocketRequestValidationError,
)
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Match

from app.ops.metrics import WORKER_REFUSALS
from shared.db.errors import database_cause, database_problem, is_worker_lost
from shared.problems import (
    MEDIA_TYPE,
    FieldError,
    Problem,
    Unavailable,
    UnsupportedMediaType,
    error_message,
    title,
)

log = structlog.get_logger(__name__)


class ProblemDetails(BaseModel):
    """The body of every error (RFC 9457)."""

    type: str = Field(default="about:blank", examples=["about:blank"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["Thing 0197… not found"])
    instance: str = Field(examples=["/things/0197…"], description="The path of the request")
    request_id: str = Field(examples=["5f0c2f6e9d7b4c1f8a3e"], description="Also in `X-Request-ID`")
    errors: list[FieldError] | None = Field(default=None, description="One entry a field, on 422")


def problem_response(
    request: HTTPConnection,
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[FieldError] = (),
) -> Response:
    body = ProblemDetails(
        title=title(status),
        status=status,
        detail=detail,
        instance=quote(request.scope["path"]),
        request_id=request.state.request_id,
        errors=list(errors) or None,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def problem(request: HTTPConnection, error: Problem) -> Response:
    """Returns the response for a problem, for code that cannot raise it, such as a middleware."""
    return problem_response(request, error.status, error.detail, error.headers, error.errors)


def internal_error(request: HTTPConnection) -> Response:
    """Returns the response for an unexpected exception, without any internal details."""
    return problem_response(request, 500, "Internal server error")


def _field_error(error: Mapping[str, Any]) -> FieldError:
    location, *path = error["loc"]
    if error["type"] == "json_invalid":
        return FieldError(
            location="body",
            pointer="",
            detail=f"Not valid JSON at character {path[0]}: {error['ctx']['error']}",
        )
    escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    pointer = "".join(f"/{part}" for part in escaped)
    return FieldError(location=str(location), pointer=pointer, detail=error_message(error))


async def _on_problem(request: Request, error: Problem) -> Response:
    return problem(request, error)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    match error.status_code:
        case HTTPStatus.BAD_REQUEST if reason := _unreadable(error.__cause__):
            body = FieldError(location="body", pointer="", detail=reason)
            return problem_response(request, 422, "The body is not valid", errors=[body])
        case HTTPStatus.NOT_FOUND:
            detail = f"There is nothing at {request.scope['path']}"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"{request.method} is not allowed here"
            return problem_response(request, 405, detail, {"Allow": _allowed_methods(request)})
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return content_too_large(request)
        case _:
            detail = str(error.detail)
    return problem_response(request, error.status_code, detail, error.headers)


def _unreadable(cause: BaseException | None) -> str | None:
    """Returns why a body cannot be read as JSON; FastAPI's own error does not say."""
    match cause:
        case UnicodeDecodeError():
            return f"Not valid UTF-8 at byte {cause.start}"
        case RecursionError():
            return "The JSON is nested too deeply"
        case ValueError():  # the limit of sys.set_int_max_str_digits
            return "A number in the JSON has too many digits"
    return None


def _allowed_methods(request: Request) -> str:
    """Returns the methods of all routes at this path; Starlette names only those of the first."""
    scopes = [{**request.scope, "method": method.value} for method in HTTPMethod]
    return ", ".join(
        scope["method"]
        for scope in scopes
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    )


def content_too_large(request: Request) -> Response:
    limit = request.scope[MAX_BODY_SIZE_SCOPE_KEY]
    return problem_response(request, 413, f"The body is larger than {limit:,} bytes")


async def _on_invalid_request(request: Request, invalid: RequestValidationError) -> Response:
    if problem := _unsupported_body(request, invalid):
        return await _on_problem(request, problem)
    return _invalid_fields(request, invalid)


async def _on_invalid_websocket(
    websocket: HTTPConnection, invalid: WebSocketRequestValidationError
) -> Response:
    return _invalid_fields(websocket, invalid)


def _invalid_fields(request: HTTPConnection, invalid: ValidationException) -> Response:
    errors = [_field_error(error) for error in invalid.errors()]
    count = "1 field is" if len(errors) == 1 else f"{len(errors)} fields are"
    return problem_response(request, 422, f"{count} not valid", errors=errors)


def _unsupported_body(request: Request, invalid: RequestValidationError) -> Problem | None:
    """Returns a 415 if the body was not sent as JSON, instead of a misleading type error."""
    if not isinstance(invalid.body, bytes) or not invalid.body:
        return None
    sent = request.headers.get("content-type", "untyped")
    return UnsupportedMediaType(f"The body must be application/json, not {sent}")


async def _on_database_error(request: Request, error: DBAPIError | PostgresError) -> Response:
    problem = database_problem(error, request.app.state.constraints)
    if problem is None:
        raise error
    if is_worker_lost(error):
        WORKER_REFUSALS.inc()
    if isinstance(problem, Unavailable):
        log.warning("database_problem", error=str(database_cause(error)), problem=problem.detail)
    return await _on_problem(request, problem)


def install_error_handlers(app: FastAPI) -> None:
    """Registers the handlers that turn exceptions into problem responses."""
    handlers: dict[type[Exception], Any] = {
        Problem: _on_problem,
        HTTPException: _on_http_exception,
        RequestValidationError: _on_invalid_request,
        WebSocketRequestValidationError: _on_invalid_websocket,
        DBAPIError: _on_database_error,
        PostgresError: _on_database_error,
    }
    for exception, handler in handlers.items():
        app.add_exception_handler(exception, handler)
