"""Entity tags and conditional requests (RFC 9110, section 13)."""

from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Header, Response
from pydantic import BaseModel

from shared.problems import PreconditionFailed

IfMatch = Annotated[
    str | None,
    Header(description="Only if this is still the current `ETag`; else 412", max_length=1000),
]
IfNoneMatch = Annotated[
    str | None,
    Header(description="304 without a body if this is still the `ETag`", max_length=1000),
]

Responses = Mapping[int | str, dict[str, Any]]
_ETAG = {
    "ETag": {"description": "The entity tag of this state (RFC 9110)", "schema": {"type": "string"}}
}
_LOCATION = {
    "Location": {"description": "The path of the new resource", "schema": {"type": "string"}}
}
ETAG_RESPONSE: Responses = {HTTPStatus.OK.value: {"headers": _ETAG}}
CREATED: Responses = {HTTPStatus.CREATED.value: {"headers": {**_LOCATION, **_ETAG}}}
NOT_MODIFIED: Responses = {
    HTTPStatus.NOT_MODIFIED.value: {"description": "Not Modified", "headers": _ETAG}
}
"""The OpenAPI `responses` of routes whose answers have entity tags."""


def created(resource: BaseModel, location: str, tag: str) -> Response:
    """Returns the response to a request that created a resource (RFC 9110, section 15.3.2)."""
    return Response(
        resource.model_dump_json(),
        HTTPStatus.CREATED,
        {"Location": location, "ETag": tag},
        media_type="application/json",
    )


def entity_tag(updated_at: datetime) -> str:
    """Returns a strong tag: the time of the last change, in microseconds."""
    return f'"{int(updated_at.timestamp() * 1_000_000):x}"'


def is_current(if_none_match: str | None, tag: str) -> bool:
    """Returns whether the client's copy is current (weak comparison).

    >>> is_current('W/"5", "7"', '"5"')
    True
    """
    return if_none_match is not None and tag in _tags(if_none_match, weak=True)


def check_if_match(if_match: str | None, tag: str) -> None:
    """Checks that the client's copy is current (strong comparison).

    Raises:
        PreconditionFailed: the copy is out of date.
    """
    if if_match is not None and tag not in _tags(if_match, weak=False):
        raise PreconditionFailed("It was changed since you read it; read it again")


class _MatchAny(frozenset[str]):
    def __contains__(self, _tag: object) -> bool:
        return True


def _tags(header: str, *, weak: bool) -> frozenset[str]:
    if header.strip() == "*":
        return _MatchAny()
    tags = (tag.strip() for tag in header.split(","))
    return frozenset(tag.removeprefix("W/") if weak else tag for tag in tags)
