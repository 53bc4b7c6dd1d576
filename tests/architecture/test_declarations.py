"""Features declare, for the cross-feature tests, only known constants about their own API.

tests/declarations.py reads these constants.
"""

import ast
import re
from itertools import product
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.routing import websockets
from app.scaffold.documents import FILE, document_parts
from tests.declarations import CONSTANTS, declared_by_feature, declaring

OPERATION_IDS = ["ANY_BODY_ACCEPTED", "SESSION_ENDING", "NEVER_SUCCEEDING"]
PARAMETER = re.compile(r"\{(\w+)")
ROUTES = ["PUBLIC_OPERATIONS", "REFUSED_OPERATIONS", "REQUEST_ARGUMENTS"]
PARAMETERS = ["UNOWNED_PARAMETERS", "OWNED_PARAMETERS", "PUBLISHED_PARAMETERS"]


@pytest.mark.parametrize("topic", CONSTANTS)
def test_each_constant_is_one_that_is_read(topic: str) -> None:
    for feature, module in declaring(topic).items():
        written = ast.parse(Path(str(module.__file__)).read_text()).body
        targets = [t for node in written if isinstance(node, ast.Assign) for t in node.targets]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        constants = {name for name in names if name.isupper() and name[0] != "_"}
        unread = constants - CONSTANTS[topic]
        assert not unread, f"no test reads these of features/{feature}/tests/{topic}.py: {unread}"


@pytest.mark.parametrize(
    ("topic", "constant"),
    [*product(["contract"], OPERATION_IDS), *product(["privacy"], ROUTES + PARAMETERS)],
)
def test_a_feature_declares_what_its_own_api_has(app: FastAPI, topic: str, constant: str) -> None:
    names = _names_of(app, constant)
    for feature, name, _ in declared_by_feature(topic, constant):
        assert name in names.get(feature, ()), (
            f"{constant} in features/{feature}/tests/{topic}.py has {name!r}, which is not in the"
            f" feature's {FILE}"
        )


def _names_of(app: FastAPI, constant: str) -> dict[str, set[str]]:
    """Returns the valid keys of the constant, by feature."""
    names: dict[str, set[str]] = {}
    for file, part in document_parts(app).items():
        found = names.setdefault(file.parts[1], set())
        for path, operations in part["paths"].items():
            for method, operation in operations.items():
                if constant in OPERATION_IDS:
                    found.add(operation["operationId"])
                elif constant in ROUTES:
                    found.add(f"{method.upper()} {path}")
                else:
                    declared = operation.get("parameters", ())
                    found |= {each["name"] for each in declared if each["in"] == "path"}
    for feature in app.state.features:
        for path in websockets(feature.router):  # which are not in the document
            found = {f"WEBSOCKET {path}"} if constant in ROUTES else {*PARAMETER.findall(path)}
            names.setdefault(feature.name, set()).update(found)
    return names
