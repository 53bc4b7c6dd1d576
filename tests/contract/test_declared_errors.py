"""Every route declares its errors, and refuses an anonymous request before it validates it."""

import json
import re
from uuid import uuid4

from fastapi import FastAPI
from httpx import AsyncClient

from shared.problems import MEDIA_TYPE
from tests.app_helpers import assert_problem
from tests.contract.test_openapi import operations


async def test_an_anonymous_request_gets_401_before_its_query_is_validated(
    app: FastAPI, anonymous: AsyncClient
) -> None:
    paths = {
        path: methods["get"] for path, methods in app.openapi()["paths"].items() if "get" in methods
    }
    for path, operation in paths.items():
        if "security" in operation:
            url = re.sub(r"{\w+}", str(uuid4()), path)
            assert_problem(await anonymous.get(url, params={"limit": "none"}), 401)


async def test_an_unknown_query_parameter_is_refused(
    app: FastAPI, client: AsyncClient, anonymous: AsyncClient
) -> None:
    """By each operation that changes something or has a principal; it says what may be meant."""
    for name, operation in operations(app.openapi()):
        method, _, path = name.partition(" ")
        url, secured = re.sub(r"{\w+}", str(uuid4()), path), "security" in operation
        sender = client if secured else anonymous
        if not secured and method == "GET":
            continue
        assert "422" in operation["responses"], name
        answer = await sender.request(method, url, params={"dryrun": "true"})
        problem = assert_problem(answer, 422)
        [error] = problem["errors"]
        assert (error["location"], error["pointer"]) == ("query", "/dryrun"), name
        assert error["detail"].startswith("Unknown parameter"), name
        if secured:
            assert_problem(await anonymous.request(method, url, params={"dryrun": "true"}), 401)
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "query":
                misspelt = await sender.request(method, url, params={f"{parameter['name']}x": "1"})
                assert f"perhaps you mean {parameter['name']}" in misspelt.text, name


async def test_every_error_is_declared_as_a_problem(app: FastAPI) -> None:
    document = app.openapi()
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])
    assert "HTTPValidationError" not in json.dumps(document)
    for name, operation in operations(document):
        responses = operation["responses"]
        assert {"500", "503"} <= set(responses), name
        if "requestBody" in operation:
            assert {"413", "415", "422"} <= set(responses), name
        if "security" in operation:
            assert {"401", "403"} <= set(responses), name
        for status, response in responses.items():
            if int(status) < 400 or (name, status) == ("POST /auth/token", "400"):  # RFC 6749
                continue
            assert list(response["content"]) == [MEDIA_TYPE], f"{name} {status}"
            schema = response["content"][MEDIA_TYPE]["schema"]
            assert schema == {"$ref": "#/components/schemas/ProblemDetails"}, f"{name} {status}"
