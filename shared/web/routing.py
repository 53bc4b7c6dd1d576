"""The router class of a feature, and query models that Pydantic validates in one call."""

from collections.abc import Iterator
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, ValidationError
from starlette.routing import Match
from starlette.types import Scope


class Router(APIRouter):
    """An `APIRouter` that skips its routes if none begins with the first segment of the path.

    FastAPI tries one route after another, and those of an included router twice: each feature
    would slow down the requests to all features after it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.beginnings: set[str] = set()
        super().__init__(*args, **options)

    def add_api_route(self, path: str, *args: Any, **options: Any) -> None:
        beginning = _first_segment(self.prefix + path)
        assert not beginning.startswith("{"), f"{path} begins with a parameter"
        self.beginnings.add(beginning)
        super().add_api_route(path, *args, **options)

    def include_router(self, router: APIRouter, **options: Any) -> None:
        assert isinstance(router, Router), "a router inside a slice's router is a Router, too"
        assert not options.get("prefix"), "the prefix belongs to the router that has the routes"
        self.beginnings |= router.beginnings
        super().include_router(router, **options)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope.get("root_path") or _first_segment(scope["path"]) in self.beginnings:
            return super().matches(scope)
        return Match.NONE, {}


def endpoints(router: APIRouter) -> Iterator[tuple[str, str]]:
    """Yields the method and path of each operation of a router, including nested routers."""
    for route in iter_route_contexts(router.routes):
        for method in sorted(route.methods or ()):
            yield method, str(route.path_format)


def _first_segment(path: str) -> str:
    return path.removeprefix("/").partition("/")[0]


Model = TypeVar("Model", bound=BaseModel)


class QueryReader(Generic[Model]):
    """A dependency that reads a model from the query string.

    `fields` has the parameters that FastAPI would read; shared/web/openapi.py documents them.
    """

    def __init__(self, model: type[Model]) -> None:
        async def declared(query: Annotated[model, Query()]) -> None:  # type: ignore[valid-type]
            pass

        self.model, self.fields = model, APIRoute("/", declared).dependant.query_params

    async def __call__(self, request: Request) -> Model:
        """Returns the validated model.

        Raises:
            RequestValidationError: a parameter is invalid; the error is the same as FastAPI's.
        """
        try:
            return self.model.model_validate(dict(request.query_params))
        except ValidationError as error:
            errors = error.errors(include_url=False)
            located = [{**each, "loc": ("query", *each["loc"])} for each in errors]
            raise RequestValidationError(located) from None


def from_query(model: type[BaseModel]) -> Any:
    """Returns a dependency that reads a query model, such as `from_query(ItemQuery)`.

    Use it as `Annotated[ItemQuery, from_query(ItemQuery)]`. Declare it after the principal, so that
    an unauthenticated request gets 401, not 422. Declare it in the route itself, as the parameters
    of nested dependencies are not documented. Of a parameter sent twice, the last value counts.
    """
    return Depends(QueryReader(model))
