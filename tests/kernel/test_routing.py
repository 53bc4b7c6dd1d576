"""A feature can have any route that FastAPI can have: routers are skipped and queries validated in
less time only where the answer is the same."""

from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, WebSocket
from fastapi._compat import ModelField
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, model_validator
from starlette.datastructures import QueryParams
from starlette.routing import Match
from starlette.testclient import TestClient
from starlette.types import Scope

from app import routing
from app.main import create_app
from shared.auth import Principal, requires
from shared.feature import Feature
from shared.settings import Settings
from tests.kit import connect


class Tags(BaseModel):
    tag: list[str] = []
    limit: Annotated[int, Field(ge=1)] = 20


class Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1)] = 20
    sort: Annotated[str, Field(alias="order")] = "id"

    @model_validator(mode="after")
    def sorted_pages_are_small(self) -> "Page":
        if self.sort != "id" and self.limit > 50:
            raise ValueError("too many to sort")
        return self


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", validate_by_name=True, validate_by_alias=True)

    name: Annotated[str | None, Field(validation_alias=AliasChoices("n", "called"))] = None


def features() -> list[Feature]:
    """Two features: of the first, every route begins with a word, one of the second with a
    parameter; both have routes below /trees."""
    trees, leaves, planets = APIRouter(prefix="/trees"), APIRouter(), APIRouter()
    growing, mounted = APIRouter(), FastAPI()

    @trees.get("")
    async def list_(query: Annotated[Tags, Query()]) -> Tags:
        return query

    @trees.post("")
    async def create() -> str:
        return "created"

    @trees.get("/{name}")
    async def get(name: str) -> str:
        return name

    async def plain(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"plain {request.url.path}")

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(f"echo of {socket.url.path}")
        await socket.close()

    @leaves.get("/leaves/{name}")
    async def leaf(name: str) -> str:
        return f"leaf {name}"

    @planets.get("/{planet}/moons")
    async def moons(planet: str) -> str:
        return f"moons of {planet}"

    @planets.delete("/trees")
    async def fell() -> str:
        return "felled"

    @mounted.get("/inside")
    async def inside() -> str:
        return "mounted"

    trees.add_route("/plain/all", plain)
    trees.websocket("/live/{name}")(echo)
    trees.add_api_websocket_route("/live", echo)
    planets.add_websocket_route("/orbit", echo)
    growing.add_route("/rings", plain)
    growing.mount("/mounted", mounted)
    growing.include_router(leaves, prefix="/nested")
    growing.include_router(trees)
    return [Feature(name="trees", router=growing), Feature(name="planets", router=planets)]


@pytest.fixture
def settings() -> Settings:
    return Settings(env="test", secret_key=SecretStr("routing " * 5), log_level="warning")


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings, features(), run_tasks=False)


@pytest.fixture
def unaided() -> FastAPI:
    """An application of FastAPI alone with the same routes."""
    app = FastAPI(redirect_slashes=False)
    for feature in features():
        app.include_router(feature.router)
    return app


FOUND = (
    "/trees",
    "/trees?tag=a&tag=b",
    "/trees/oak",
    "/plain/all",
    "/rings",
    "/mounted/inside",
    "/nested/leaves/green",
    "/mars/moons",
    "/trees/moons",
)
MISSING = ("/", "/nothing", "/trees/oak/", "/nested", "/leaves/green", "/mounted", "//trees")


@pytest.mark.parametrize("root_path", ["", "/api"])
async def test_each_method_of_each_path_is_answered_as_by_fastapi(
    app: FastAPI, unaided: FastAPI, root_path: str
) -> None:
    for served in (app, unaided):
        served.root_path = root_path
    async with connect(app) as client, connect(unaided) as plain:
        for path, method in product(FOUND + MISSING, ("GET", "HEAD", "POST", "DELETE", "OPTIONS")):
            ours = await client.request(method, root_path + path)
            theirs = await plain.request(method, root_path + path)
            assert ours.status_code == theirs.status_code, (method, path)
            if ours.is_success:
                assert ours.content == theirs.content, (method, path)
            if method == "GET":
                assert ours.is_success == (path in FOUND), path


async def test_a_feature_can_have_an_application_for_a_host(settings: Settings) -> None:
    router, everything = APIRouter(), APIRouter()
    everything.get("/any/path")(lambda: "found")
    router.host("testserver", everything)
    app = create_app(settings, [Feature(name="host", router=router)], run_tasks=False)
    async with connect(app) as client:
        assert (await client.get("/any/path")).json() == "found"


async def test_a_405_names_the_methods_of_both_features(app: FastAPI) -> None:
    async with connect(app) as client:
        response = await client.put("/trees")
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST", "DELETE"}


@pytest.mark.parametrize("path", ["/trees/live", "/trees/live/oak", "/orbit"])
def test_a_feature_can_have_web_sockets(app: FastAPI, path: str) -> None:
    with TestClient(app).websocket_connect(path) as socket:
        assert socket.receive_text() == f"echo of {path}"


async def test_a_router_is_skipped_if_no_route_begins_like_the_path(settings: Settings) -> None:
    tried: list[str] = []

    class NotedRoute(APIRoute):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            tried.append(self.path)
            return super().matches(scope)

    one, inner, outer = (APIRouter(route_class=NotedRoute) for _ in range(3))
    one.get("/a")(lambda: "a")
    inner.get("/x/{name}")(lambda name: name)
    outer.include_router(inner, prefix="/b")
    both = [Feature(name="one", router=one), Feature(name="two", router=outer)]
    async with connect(create_app(settings, both, run_tasks=False)) as client:
        for path, expected in (("/b/x/y", {"/x/{name}"}), ("/a", {"/a"}), ("/c", set())):
            tried.clear()
            response = await client.get(path)
            assert response.is_success == bool(expected)
            assert set(tried) == expected


async def test_a_route_that_is_added_before_the_first_request_is_found(settings: Settings) -> None:
    router = APIRouter()
    app = create_app(settings, [Feature(name="late", router=router)], run_tasks=False)
    router.get("/late")(lambda: "found")
    async with connect(app) as client:
        assert (await client.get("/late")).json() == "found"


async def test_a_list_and_a_repeated_value(app: FastAPI) -> None:
    async with connect(app) as client:
        listed = await client.get("/trees?tag=a&tag=b&limit=1&limit=2")
    assert listed.json() == {"tag": ["a", "b"], "limit": 2}, "the last value counts"


async def test_an_invalid_query_of_an_unauthenticated_request_is_401(settings: Settings) -> None:
    """Also if the query stands before the principal."""
    router = APIRouter()

    @router.get("/things")
    async def list_(
        query: Annotated[Page, Query()],
        principal: Annotated[Principal, requires("things:read")],
    ) -> None: ...

    feature = Feature(name="things", router=router, scopes={"things:read": "Read things"})
    async with connect(create_app(settings, [feature], run_tasks=False)) as client:
        assert (await client.get("/things?limit=0")).status_code == 401


async def test_a_declared_query_parameter_is_known_wherever_it_is_declared(
    settings: Settings,
) -> None:
    async def of_dependency(verbose: bool = False) -> None: ...

    async def of_router(tenant: str = "") -> None: ...

    inner, outer = APIRouter(), APIRouter(dependencies=[Depends(of_router)])

    @inner.post("/things", dependencies=[Depends(of_dependency)])
    async def create(
        tags: Annotated[Tags, Query()], kind: Annotated[str, Query(alias="k")] = ""
    ) -> None: ...

    @inner.post("/open")
    async def create_any(query: Annotated[Open, Query()]) -> None: ...

    @inner.get("/redirected")
    async def redirected(code: str) -> None: ...

    outer.include_router(inner)
    feature = Feature(name="things", router=outer)
    async with connect(create_app(settings, [feature], run_tasks=False)) as client:
        known = "/things?verbose=1&tenant=a&limit=3&tag=a&tag=b&k=1"
        assert (await client.post(known)).status_code == 200
        for name in ("sort", "kind", "Tenant", "limit[]"):
            refused = await client.post("/things", params={name: "1"})
            assert refused.json()["errors"][0]["pointer"] == f"/{name}"
        assert (await client.post("/open?anything=1")).status_code == 200
        assert (await client.get("/redirected?code=1&session_state=2")).status_code == 200


def query_field(annotation: Any) -> ModelField:
    async def endpoint(query: Annotated[annotation, Query()] = None) -> None:
        pass

    return APIRoute("/", endpoint).dependant.query_params[0]


@pytest.mark.parametrize("annotation", [Page, Tags, Open, Page | None, Tags | None])
@pytest.mark.parametrize(
    "query",
    [
        "",
        "limit=5",
        "limit=5&order=name",
        "limit=0&order=name&nothing=1",
        "limit=60&order=name",
        "limit=",
        "limit=1&limit=2",
        "limit=1&limit=0",
        "sort=name",
        "tag=a",
        "tag=a&tag=b&limit=x",
        "nothing=1&nothing=2",
        "n=1&called=2&name=3",
        "called=2",
        "name=3&name=4&other=5",
    ],
)
def test_a_query_model_and_its_errors_are_those_of_fastapi(annotation: Any, query: str) -> None:
    field, received = query_field(annotation), QueryParams(query)
    model = annotation if isinstance(annotation, type) else annotation.__args__[0]
    theirs = routing._read_as_fastapi(field, model, received)
    assert repr(routing._read_query_model(field, model, received)) == repr(theirs)


async def test_fastapi_reads_what_is_no_plain_query_model(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[type[BaseModel]] = []

    def noted(field: ModelField, model: type[BaseModel], received: Mapping[str, Any]) -> Any:
        left.append(model)
        return read(field, model, received)

    read = routing._read_as_fastapi
    monkeypatch.setattr(routing, "_read_as_fastapi", noted)
    router = APIRouter()

    async def nested(page: Annotated[Page, Query()]) -> Page:
        return page

    @router.get("/page")
    async def page(page: Annotated[Page, Depends(nested)]) -> Page:
        return page

    @router.get("/three")
    async def three(
        tags: Annotated[Tags, Query()],
        others: Annotated[Open, Query()],
        headers: Annotated[Tags, Header()],
        limit: int,
    ) -> list[Any]:
        return [tags, others, headers, limit]

    app = create_app(settings, [Feature(name="pages", router=router)], run_tasks=False)
    async with connect(app, headers={"tag": "red"}) as client:
        assert (await client.get("/page?limit=3")).json()["limit"] == 3
        assert left == []
        assert (await client.get("/three?limit=3&n=oak&tag=a")).json() == [
            {"tag": ["a"], "limit": 3},
            {"name": "oak", "tag": "a", "limit": "3"},
            {"tag": ["red"], "limit": 20},
            3,
        ]
        assert left == [Tags, Tags]


async def test_a_feature_may_have_no_routes(settings: Settings) -> None:
    app = create_app(settings, [*features(), Feature(name="jobs")], run_tasks=False)
    async with connect(app) as client:
        assert (await client.get("/openapi.json")).status_code == 200
        assert (await client.get("/jobs")).status_code == 404


ENCODED = {
    "/trees/o%61k": 200,  # the value of a parameter
    "/trees/o%20k": 200,
    "/%74rees": 404,
    "/%74rees/oak": 404,
    "/plain/%61ll": 404,
    "/plain%2Fall": 404,
    "/nested/%6Ceaves/green": 404,
    "/nested/leaves/gr%65en": 200,
    "/m%6Funted/inside": 404,
    "/mars/moon%73": 404,
    "/m%61rs/moons": 200,
    "/%68ealthz": 404,
    "/%6Detrics": 404,
    "/%6DETRICS": 404,
    "/readyz%3F": 404,
    "/d%6Fcs": 404,
    "/docs/%61ssets/swagger-ui.css": 404,
    "/docs%2Fassets/swagger-ui.css": 404,
    "/docs/assets/swagger-ui.cs%73": 200,
    "//metrics": 404,
    "/docs/%2E%2E/metrics": 404,
    "/metrics;x": 404,
    "/metrics/": 404,
    "/metrics%00": 404,
    "/Metrics": 404,
}


@pytest.mark.parametrize("root_path", ["", "/api"])
async def test_only_the_values_of_parameters_may_be_percent_encoded(
    app: FastAPI, root_path: str
) -> None:
    app.root_path = root_path
    async with connect(app) as client:
        for path, status in ENCODED.items():
            url = client.base_url.copy_with(raw_path=(root_path + path).encode())
            assert (await client.get(url)).status_code == status, path
