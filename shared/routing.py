"""The router class of a feature."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.routing import iter_route_contexts
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
