"""The OpenAPI document, corrected, and its page, which needs no internet access."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.docs import get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from app.problem_details import ProblemDetails
from app.routing import SAFE_METHODS
from shared.auth import api_key, bearer
from shared.problems import MEDIA_TYPE, FieldError, title
from shared.web.conditional import ETAG_HEADER

ASSETS = "/docs/assets"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
ALWAYS = (429, 500, 503)
WITH_SECURITY = (401, 403)
WITH_BODY = (413, 415, 422)
WITH_PARAMETER = {"cursor": (400,), "idempotency-key": (409,), "if-match": (412,)}

router = APIRouter(include_in_schema=False)


def operation_id(route: APIRoute) -> str:
    """Returns `orders_list`, for example, for the function `list_` of a router tagged `orders`."""
    names = [*route.tags[:1], route.name.rstrip("_")]
    return "_".join(map(str, names)).replace("-", "_")


def mount_docs(app: FastAPI) -> None:
    """Serves `/docs` from packaged assets, and replaces the generated OpenAPI document."""
    app.include_router(router)
    app.mount(ASSETS, StaticFiles(directory=_assets()), name="docs_assets")

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _exact(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to replace it


def _assets() -> Path:
    spec = find_spec("fastapi_offline")  # not imported: only its files are needed
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "static"


@router.get("/docs")
async def docs() -> Response:
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Tessera",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
        oauth2_redirect_url="/docs/oauth2-redirect",
    )
    return HTMLResponse(page.body, headers={"Content-Security-Policy": PAGE_POLICY})


@router.get("/docs/oauth2-redirect")
async def oauth2_redirect() -> Response:
    page = get_swagger_ui_oauth2_redirect_html()
    return HTMLResponse(page.body, headers={"Content-Security-Policy": PAGE_POLICY})


def _exact(app: FastAPI) -> dict[str, Any]:
    """Returns the generated document, with errors and parameters declared as they really are."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for generated in ("HTTPValidationError", "ValidationError"):
        schemas.pop(generated, None)
    _, definitions = models_json_schema(
        [(ProblemDetails, "serialization"), (FieldError, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    schemas.update(definitions["$defs"])
    if schemes := components.get("securitySchemes"):  # none if no route needs a principal
        _complete_security_schemes(app, schemes)
    for path in document["paths"].values():
        for method, operation in path.items():
            _declare_problems(method, operation)
            if security := operation.get("security"):
                security.append({api_key.scheme_name: security[0][bearer.scheme_name]})
            for parameter in operation.get("parameters", []):
                parameter["schema"] = _without_null(parameter["schema"])
    return document


def _complete_security_schemes(app: FastAPI, schemes: dict[str, Any]) -> None:
    """Adds the scheme of API keys, and the token endpoint and scopes of the features."""
    schemes[api_key.scheme_name] = jsonable_encoder(api_key.model, exclude_none=True)
    flow = schemes[bearer.scheme_name]["flows"]["password"]
    if app.state.authenticator:
        flow["tokenUrl"] = flow["refreshUrl"] = app.state.authenticator.token_url
    flow["scopes"] = {k: v for feature in app.state.features for k, v in feature.scopes.items()}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Removes null from a parameter's schema: a parameter can be omitted, but not null."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**rest, **kinds[0]} if len(kinds) == 1 else schema | ({"anyOf": kinds} if kinds else {})


def _declare_problems(method: str, operation: dict[str, Any]) -> None:
    """Declares the problems and entity tags that follow from what the route itself declares."""
    declared, parameters = operation["responses"], operation.get("parameters", [])
    wanted = {int(status) for status in declared if status == "422"} | set(ALWAYS)
    if "security" in operation:
        wanted |= set(WITH_SECURITY)
    if "security" in operation or method.upper() not in SAFE_METHODS:
        wanted.add(422)  # for a query parameter that is not declared
    if "requestBody" in operation:
        wanted |= set(WITH_BODY)
        if "multipart/form-data" in operation["requestBody"].get("content", ()):
            wanted.add(400)
    names = {parameter["name"].lower() for parameter in parameters}
    implied = {status for name in names for status in WITH_PARAMETER.get(name, ())}
    if any(parameter["in"] == "path" for parameter in parameters):
        implied.add(404)
    wanted |= {status for status in implied if str(status) not in declared}
    for status in wanted:
        problem = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
        declared[str(status)] = {"description": title(status), "content": {MEDIA_TYPE: problem}}
    if names & {"if-match", "if-none-match"} and "200" in declared:
        declared["200"].setdefault("headers", {}).update(ETAG_HEADER)
    if "if-none-match" in names:
        declared["304"] = {"description": title(304), "headers": ETAG_HEADER}
    operation["responses"] = dict(sorted(declared.items()))
