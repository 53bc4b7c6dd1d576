"""The router of a slice."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.routing import iter_route_contexts
from starlette.routing import Match
from starlette.types import Scope


class Router(APIRouter):
    """An `APIRouter` that passes over a path at once if none of its routes begins like it.

    FastAPI tries one route after the other, those of a router that is included twice: with
    every slice, every request to the slices behind it would take longer.
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
    """The method and the path of each of its operations, those of routers inside included."""
    for route in iter_route_contexts(router.routes):
        for method in sorted(route.methods or ()):
            yield method, str(route.path_format)


def _first_segment(path: str) -> str:
    return path.removeprefix("/").partition("/")[0]
