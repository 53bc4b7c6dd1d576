"""Entity tags and conditional requests (RFC 9110, section 13)."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Header, Request, Response

from shared.problems import PreconditionFailed

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
ETAG_HEADER = {
    "ETag": {"description": "The entity tag of this state (RFC 9110)", "schema": {"type": "string"}}
}
_LOCATION = {
    "Location": {"description": "The path of the new resource", "schema": {"type": "string"}}
}
CREATED_RESPONSE: dict[int | str, dict[str, Any]] = {
    HTTPStatus.CREATED.value: {"headers": {**_LOCATION, **ETAG_HEADER}}
}
"""The OpenAPI `responses` of a route that returns `created`."""

IfMatch = Annotated[
    str | None,
    Header(description="Only if this is still the current `ETag`; else 412", max_length=1000),
]
"""The precondition of a change, for `check_if_match`."""


class _Resource(Protocol):
    @property
    def id(self) -> Any: ...
    @property
    def updated_at(self) -> datetime: ...
    def model_dump_json(self) -> str: ...


Resource = TypeVar("Resource", bound=_Resource)


@dataclass(frozen=True)
class Conditional:
    """The version of a resource that a client has already."""

    response: Response
    if_none_match: str | None

    def answer(self, resource: Resource) -> Resource | Response:
        """Returns the resource with its entity tag, or 304 if the client's copy is current."""
        tag = entity_tag(resource.updated_at)
        if self.if_none_match is not None and _matches(tag, self.if_none_match, weak=True):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": tag})
        self.response.headers["ETag"] = tag
        return resource


async def _conditional(
    response: Response,
    if_none_match: Annotated[
        str | None,
        Header(description="304 without a body if this is still the `ETag`", max_length=1000),
    ] = None,
) -> Conditional:
    return Conditional(response, if_none_match)


ConditionalGet = Annotated[Conditional, Depends(_conditional)]


def tagged(response: Response, resource: Resource) -> Resource:
    """Returns a resource, and gives the response its entity tag."""
    response.headers["ETag"] = entity_tag(resource.updated_at)
    return resource


def created(request: Request, resource: _Resource) -> Response:
    """Returns the response to a POST that created a resource (RFC 9110, section 15.3.2)."""
    return Response(
        resource.model_dump_json(),
        HTTPStatus.CREATED,
        {
            "Location": f"{request.url.path}/{resource.id}",
            "ETag": entity_tag(resource.updated_at),
        },
        media_type="application/json",
    )


def entity_tag(updated_at: datetime) -> str:
    """Returns a strong tag: the time of the last change, in microseconds. They are counted in
    integers, as a float is too coarse for them from 2038 on."""
    return f'"{(updated_at - EPOCH) // MICROSECOND:x}"'


def check_if_match(if_match: str | None, updated_at: datetime) -> None:
    """Checks that the client's copy is current.

    Raises:
        PreconditionFailed: the copy is out of date.
    """
    if if_match is not None and not _matches(entity_tag(updated_at), if_match, weak=False):
        raise PreconditionFailed("It was changed since you read it; read it again")


def _matches(tag: str, header: str, *, weak: bool) -> bool:
    """Returns whether a header names this tag, or any (`*`). Compared weakly, `W/"5"` is `"5"`."""
    if header.strip() == "*":
        return True
    named = (each.strip() for each in header.split(","))
    return tag in ((each.removeprefix("W/") for each in named) if weak else named)
