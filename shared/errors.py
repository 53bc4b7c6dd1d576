"""Errors as problem details (RFC 9457): one exception type and one JSON shape for every failure.

A handler raises a `Problem`. Every other failure of a request (validation, the framework's own
404, a unique violation, a lost database connection) is translated into one here.
"""

from collections.abc import Mapping, Sequence
from http import HTTPMethod, HTTPStatus
from typing import Any, ClassVar
from urllib.parse import quote

import structlog
from asyncpg import PostgresError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import Counter
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.responses import Response
from starlette.routing import Match

from shared.schemas import NO_NUL

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = "1"
BUSY = "The service is busy; please try again"
LOST = "The database connection was lost; please try again"
UNREACHABLE = "The database cannot be reached; please try again"
SHED = Counter(
    "tessera_requests_shed_total", "Requests refused as too much was under way", ("reason",)
)

log = structlog.get_logger(__name__)


class FieldError(BaseModel):
    """What is wrong with one value. `pointer` is a JSON pointer (RFC 6901) into the part named."""

    location: str = Field(examples=["body"], description="`body`, `query`, `path` or `header`")
    pointer: str = Field(examples=["/price"])
    detail: str = Field(examples=["Input should be greater than 0"])


class ProblemDetails(BaseModel):
    """The body of every error (RFC 9457)."""

    type: str = Field(default="about:blank", examples=["about:blank"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["Item 0197… not found"])
    instance: str = Field(examples=["/items/0197…"], description="The path of the request")
    request_id: str = Field(examples=["5f0c2f6e9d7b4c1f8a3e"], description="Also in `X-Request-ID`")
    errors: list[FieldError] | None = Field(default=None, description="One entry a field, on 422")


class Problem(Exception):
    """An error response. The client receives `detail` as it is."""

    status: ClassVar[HTTPStatus] = HTTPStatus.BAD_REQUEST
    headers: Mapping[str, str] = {}

    def __init__(
        self,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = {**type(self).headers, **(headers or {})}
        self.errors = errors


class BadRequest(Problem):
    status = HTTPStatus.BAD_REQUEST


class Unauthorized(Problem):
    """The credentials are missing or invalid (RFC 6750, section 3)."""

    status = HTTPStatus.UNAUTHORIZED
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class Forbidden(Problem):
    status = HTTPStatus.FORBIDDEN


class NotFound(Problem):
    status = HTTPStatus.NOT_FOUND


class NotAcceptable(Problem):
    status = HTTPStatus.NOT_ACCEPTABLE


class RequestTimeout(Problem):
    """The rest of the request did not arrive in time (RFC 9110, section 15.5.9)."""

    status = HTTPStatus.REQUEST_TIMEOUT
    headers: Mapping[str, str] = {"Connection": "close"}


class Conflict(Problem):
    status = HTTPStatus.CONFLICT


class PreconditionFailed(Problem):
    status = HTTPStatus.PRECONDITION_FAILED


class ContentTooLarge(Problem):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedMediaType(Problem):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class Unprocessable(Problem):
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class TooManyRequests(Problem):
    status = HTTPStatus.TOO_MANY_REQUESTS


class Unavailable(Problem):
    """The service, or a dependency, cannot answer now; the same request may succeed soon."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers: Mapping[str, str] = {"Retry-After": RETRY_AFTER_SECONDS}


def busy(reason: str, detail: str = BUSY) -> Unavailable:
    """Load shedding: counts a refused request under `reason`, and returns the 503 to raise."""
    SHED.labels(reason).inc()
    return Unavailable(detail)


TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}  # the names of RFC 9110


def title(status: int) -> str:
    return TITLES.get(status) or HTTPStatus(status).phrase


def responses(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """Returns the OpenAPI `responses` of a route that can answer with these problems."""
    return {
        problem.status.value: {
            "description": title(problem.status),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for problem in problems
    }


def problem_response(
    request: Request,
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[FieldError] = (),
) -> Response:
    body = ProblemDetails(
        title=title(status),
        status=status,
        detail=detail,
        instance=quote(request.url.path),
        request_id=request.state.request_id,
        errors=list(errors) or None,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def problem(request: Request, error: Problem) -> Response:
    """Returns the response for a problem, for code that cannot raise it, such as a middleware."""
    return problem_response(request, error.status, error.detail, error.headers, error.errors)


def internal_error(request: Request) -> Response:
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
    return FieldError(location=str(location), pointer=pointer, detail=message_of(error))


def message_of(error: Mapping[str, Any]) -> str:
    """Returns the message of a Pydantic error, in words for the client."""
    if error.get("ctx", {}).get("pattern") == NO_NUL:
        return "String should not contain NUL characters"
    return str(error["msg"]).removeprefix("Value error, ")


async def _on_problem(request: Request, error: Problem) -> Response:
    return problem(request, error)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    match error.status_code:
        case HTTPStatus.BAD_REQUEST if reason := _unreadable(error.__cause__):
            body = FieldError(location="body", pointer="", detail=reason)
            return problem_response(request, 422, "The body is not valid", errors=[body])
        case HTTPStatus.NOT_FOUND:
            detail = f"There is nothing at {request.url.path}"
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
    constraint = getattr(database_cause(error), "constraint_name", None)
    if violated := request.app.state.constraints.get(constraint):
        return await _on_problem(request, violated)
    problem = database_problem(error)
    if problem is None:
        raise error
    log.warning("database_problem", error=str(database_cause(error)), problem=problem.detail)
    return await _on_problem(request, problem)


def database_cause(error: DBAPIError | PostgresError) -> BaseException | None:
    """Returns asyncpg's exception, which SQLAlchemy wraps unless asyncpg is used directly."""
    if isinstance(error, DBAPIError):
        return error.orig.__cause__ if error.orig else None
    return error


def database_problem(error: DBAPIError | PostgresError) -> Problem | None:
    """Translates a database error into a problem; returns None for a bug in our code.

    Decides by SQLSTATE (PostgreSQL, appendix A): cancelled by a timeout, lock not available,
    deadlock and serialization failure; no connection, not admitted, no such database, too
    many connections, shutting down; data that PostgreSQL cannot hold.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return Unavailable(LOST)
    cause = database_cause(error)
    if isinstance(cause, OSError):
        return Unavailable(UNREACHABLE)
    state = cause.sqlstate if isinstance(cause, PostgresError) else None
    if state is None:
        return None
    if state == "57014":
        return Unavailable("The database took too long to answer; please try again")
    if state in {"55P03", "40P01", "40001"}:
        return Unavailable("The data is busy with another request; please try again")
    if state.startswith(("08", "28", "3D", "53", "57P")):
        return Unavailable("The database is not available; please try again")
    if state in {"22021", "22P05"}:
        return Unprocessable("The text has a character that cannot be stored")
    return None


def install_error_handlers(app: FastAPI) -> None:
    """Registers the handlers that turn exceptions into problem responses."""
    handlers: dict[type[Exception], Any] = {
        Problem: _on_problem,
        HTTPException: _on_http_exception,
        RequestValidationError: _on_invalid_request,
        DBAPIError: _on_database_error,
        PostgresError: _on_database_error,
    }
    for exception, handler in handlers.items():
        app.add_exception_handler(exception, handler)
