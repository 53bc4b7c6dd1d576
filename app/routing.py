"""Lists the routes of the application, and serves them in less time.

Features use FastAPI's own routers and `Annotated[Model, Query()]`. The shortcuts here
change neither which requests a route matches nor its answers; FastAPI does all others.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi._compat import (
    ModelField,
    field_annotation_is_sequence,
    get_cached_model_fields,
)
from fastapi.dependencies import utils
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import (
    APIRoute,
    RouteContext,
    _get_scope_effective_route_context,
    iter_route_contexts,
)
from fastapi.security import SecurityScopes
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Match, Mount, WebSocketRoute, compile_path
from starlette.types import Receive, Scope, Send

from shared.auth import authenticate

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_handle_as_fastapi = APIRoute.handle
_read_as_fastapi = utils._request_param_model_to_args


def endpoints(router: APIRouter) -> Iterator[tuple[str, str]]:
    """Yields the method and path of each operation of a router, including nested routers."""
    for route in iter_route_contexts(router.routes):
        for method in sorted(route.methods or ()):
            yield method, str(route.path_format)


def websockets(router: APIRouter) -> Iterator[str]:
    """Yields the path of each websocket of a router, including nested routers."""
    for route in iter_route_contexts(router.routes):
        if isinstance(route.original_route, WebSocketRoute):
            yield str(route.path_format)


def is_event_stream(scope: Mapping[str, Any]) -> bool:
    """Returns whether a request has been routed to a stream of server-sent events."""
    return getattr(scope.get("route"), "is_sse_stream", False)


def skip_routers(app: FastAPI) -> None:
    """Skips each included router that has no route with the first segment of a request's path.

    FastAPI tries one route after another, so that each feature would slow down the requests to all
    features after it: by 15 % of `GET /items/{id}`. Call this when every router is included; a
    router's own routes are read at its first request.
    """
    for route in app.routes:
        route.matches = _matches_or_skips(route)  # type: ignore[method-assign, assignment]


def _matches_or_skips(route: BaseRoute) -> Callable[[Scope], tuple[Match, Scope]]:
    matches = route.matches

    @cache
    def first_segments() -> frozenset[str] | None:
        """Returns None if a route begins with a parameter, or has no path, as one for a host."""
        paths = [context.path or "" for context in iter_route_contexts([route])]
        found = frozenset(_first_segment(path) for path in paths)
        literal = all(path.startswith("/") for path in paths) and "{" not in "".join(found)
        return found if literal else None

    @cache
    def patterns() -> list[re.Pattern[str]]:
        return [_pattern(context) for context in iter_route_contexts([route])]

    def matches_or_skips(scope: Scope) -> tuple[Match, Scope]:
        known = first_segments()
        if known is None or scope.get("root_path") or _first_segment(scope["path"]) in known:
            raw_path = scope.get("raw_path", b"").decode()
            if "%" not in raw_path or _is_literal(raw_path, scope, patterns()):
                return matches(scope)
        return Match.NONE, {}

    return matches_or_skips


def _pattern(context: RouteContext) -> re.Pattern[str]:
    below = "/{path:path}" if isinstance(context.original_route, Mount) else ""
    return compile_path(f"{context.path or ''}{below}")[0]


def _is_literal(raw_path: str, scope: Scope, patterns: Iterable[re.Pattern[str]]) -> bool:
    """Returns whether only parameters are percent-encoded in a path.

    A proxy may compare paths as they are sent: where it refuses `/metrics`, `/%6Detrics` must not
    pass.
    """
    root_path = scope.get("root_path", "")
    path, sent = scope["path"].removeprefix(root_path), raw_path.removeprefix(root_path)
    return all(pattern.match(sent) for pattern in patterns if pattern.match(path))


def _first_segment(path: str) -> str:
    return path.removeprefix("/").partition("/")[0]


def refuse_unknown_parameters() -> None:
    """Refuses a query parameter that an operation does not declare, if the operation changes
    something or has a principal: `?dryrun=true` would import for real.

    Others, such as a page that a browser is redirected to, ignore unknown ones. FastAPI
    has no setting for it, so a method is replaced, in the whole process; as a dependency of each
    router it would take 7 % of a GET of one row.
    """
    APIRoute.handle = _handle  # type: ignore[method-assign, assignment]


async def _handle(route: APIRoute, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["query_string"]:
        await _check_parameters(_get_scope_effective_route_context(scope) or route, scope)
    await _handle_as_fastapi(route, scope, receive, send)


async def _check_parameters(route: Any, scope: Scope) -> None:
    """Checks the names of the query parameters.

    Raises:
        RequestValidationError: the operation does not declare one.
        Unauthorized: nor has the request a valid credential, where it needs one.
    """
    if not hasattr(route, "declared_parameters"):  # neither a route nor its context has a hash
        route.declared_parameters = _declared_parameters(route)
    known = route.declared_parameters
    if known is None:
        return
    sent = QueryParams(scope["query_string"])
    if unknown := [_unknown(name, known) for name in sent if name not in known]:
        if has_principal(route.dependant):
            await authenticate(HTTPConnection(scope), SecurityScopes())
        raise RequestValidationError(unknown)


def _declared_parameters(route: Any) -> set[str] | None:
    """Returns the names of the query parameters of an operation, or None if it accepts any."""
    if route.methods <= SAFE_METHODS and not has_principal(route.dependant):
        return None
    names: set[str] = set()
    for parameter in (
        each for dependant in _flatten(route.dependant) for each in dependant.query_params
    ):
        model = utils._get_param_model(parameter)
        if model and model.model_config.get("extra") == "allow":
            return None
        for field in get_cached_model_fields(model) if model else [parameter]:
            names.update(alias for _, alias in utils._get_param_aliases(field))
    return names


def has_principal(dependant: Dependant) -> bool:
    """Returns whether an operation authenticates its requests."""
    return any(each.call is authenticate for each in _flatten(dependant))


def _flatten(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from _flatten(each)


def _unknown(name: str, known: Iterable[str]) -> dict[str, Any]:
    near = get_close_matches(name, sorted(known), n=1)
    message = "Unknown parameter" + (f"; perhaps you mean {near[0]}" if near else "")
    return {"type": "extra_forbidden", "loc": ("query", name), "msg": message, "input": None}


def validate_queries_at_once() -> None:
    """Gives a query model all parameters at once, where FastAPI collects them field by field.

    That saves 12 % of a `GET /items`. FastAPI has no setting for it, so one of its functions is
    replaced, in the whole process.
    """
    utils._request_param_model_to_args = _read_query_model


def _read_query_model(
    model_field: ModelField, model: type[BaseModel], received_params: Mapping[str, Any]
) -> tuple[Any, list[Any]]:
    """Returns the model and the errors, as FastAPI's function does.

    Without lists and repeated parameters FastAPI would collect the same values.
    """
    if (
        isinstance(received_params, QueryParams)
        and len(received_params.multi_items()) == len(received_params)
        and model_field.field_info.annotation is model  # and not `Model | None`
        and not _has_lists(model)  # type: ignore[arg-type]  # to mypy a metaclass is not hashable
    ):
        return model_field.validate(dict(received_params.items()), {}, loc=("query",))
    return _read_as_fastapi(model_field, model, received_params)


@cache
def _has_lists(model: type[BaseModel]) -> bool:
    fields = model.model_fields.values()
    return any(field_annotation_is_sequence(field.annotation) for field in fields)
