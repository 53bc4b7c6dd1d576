"""The OpenAPI document is exact, and changes only on purpose."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI

from app.scaffold.documents import ROOT, document_parts

OPERATION_ID = re.compile(r"[a-z]+(_[a-z0-9]+)+")


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_document_changes_only_on_purpose(app: FastAPI) -> None:
    """Compares the part of each feature, and of the kernel, with the file in its tests."""
    for file, part in document_parts(app).items():
        assert (ROOT / file).exists(), f"{file} is missing: make openapi"
        kept = json.loads((ROOT / file).read_text())
        assert part == kept, f"the API in {file} has changed; if you mean it: make openapi"


def test_the_parts_of_the_document_are_all_of_it(app: FastAPI, document: dict[str, Any]) -> None:
    parts = document_parts(app).values()
    kept = {name for part in parts for name, _ in operations(part)}
    assert kept == {name for name, _ in operations(document)}
    assert {name for part in parts for name in part["schemas"]} == {
        *document["components"]["schemas"]
    }


def test_operations_have_names_for_clients(document: dict[str, Any]) -> None:
    names = Counter(operation["operationId"] for _, operation in operations(document))
    assert [name for name, times in names.items() if times > 1] == []
    for name, operation in operations(document):
        tag = operation["tags"][0].replace("-", "_")
        assert operation["operationId"].startswith(f"{tag}_"), name
        assert OPERATION_ID.fullmatch(operation["operationId"]), name


def test_operations_say_what_they_do(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation.get("description", "").strip().endswith("."), f"{name} has no docstring"


def test_successes_have_a_shape(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        successes = {k: v for k, v in operation["responses"].items() if k[0] in "23"}
        assert successes, name
        for status, response in successes.items():
            for media_type, body in response.get("content", {}).items():
                shape = body.get("schema") or body.get("itemSchema")  # of a stream
                assert shape or status == "202", f"{name} {status} {media_type}"


def test_a_patch_changes_only_what_is_sent(document: dict[str, Any]) -> None:
    """A generated client sends the defaults of a body with each change."""
    bodies = {
        name: operation["requestBody"]
        for name, operation in operations(document)
        if name.startswith("PATCH ")
    }
    assert bodies
    for name, body in bodies.items():
        assert list(defaults(body, document)) == [], name


def defaults(node: Any, document: dict[str, Any]) -> Iterator[Any]:
    """Yields the default of each field in a schema, and in those that it refers to."""
    if isinstance(node, list):
        for child in node:
            yield from defaults(child, document)
    elif isinstance(node, dict):
        if "default" in node:
            yield node
        for key, child in node.items():
            if key == "$ref":
                yield from defaults(
                    document["components"]["schemas"][child.rpartition("/")[2]], document
                )
            else:
                yield from defaults(child, document)


def test_examples_are_valid(document: dict[str, Any]) -> None:
    found = list(examples(document, "#"))
    assert found
    for where, schema, example in found:
        whole = {**schema, "components": document["components"]}
        validator = jsonschema_rs.validator_for(whole, validate_formats=True)
        errors = [error.message for error in validator.iter_errors(example)]
        assert errors == [], f"{where}: {example!r}"


def examples(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yields the place, the schema and the value of each example in the document."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from examples(child, f"{where}/{index}")
    elif isinstance(node, dict):
        if isinstance(node.get("examples"), list):
            for example in node["examples"]:
                yield where, node, example
        if "schema" in node and "example" in node:
            yield where, node["schema"], node["example"]
        for key, child in node.items():
            if key not in {"example", "examples"}:
                yield from examples(child, f"{where}/{key}")
