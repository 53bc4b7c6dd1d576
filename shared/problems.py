"""The problems that a request can end with: one exception type for every failure.

A handler raises a `Problem`; `app/problem_details.py` turns it into the response.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from shared.metrics import REQUESTS_SHED
from shared.types import NO_NUL

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "1"}  # seconds

SERVICE_BUSY = "The service is busy; please try again"


class FieldError(BaseModel):
    """The fault of one value. `pointer` is a JSON pointer (RFC 6901) into the part named."""

    location: str = Field(examples=["body"], description="`body`, `query`, `path` or `header`")
    pointer: str = Field(examples=["/price"])
    detail: str = Field(examples=["Input should be greater than 0"])


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
    headers: Mapping[str, str] = {"Vary": "Accept"}


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
    headers: Mapping[str, str] = RETRY_AFTER


def overloaded(reason: str, detail: str = SERVICE_BUSY) -> Unavailable:
    """Load shedding: counts a refused request under `reason`, and returns the 503 to raise."""
    REQUESTS_SHED.labels(reason).inc()
    return Unavailable(detail)


# The names of RFC 9110.
TITLES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


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


def error_message(error: Mapping[str, Any]) -> str:
    """Returns the message of a Pydantic error, in words for the client."""
    if error.get("ctx", {}).get("pattern") == NO_NUL:
        return "String should not contain NUL characters"
    return str(error["msg"]).removeprefix("Value error, ")
