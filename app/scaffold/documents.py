"""The OpenAPI document in parts, as the tests store it: a file for the kernel, one a feature.

So a review shows each change of the API, and two features never write to the same file.
"""

import json
import re
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from app.routing import endpoints

ROOT = Path(__file__).resolve().parents[2]
FILE = "tests/openapi.json"
REFERENCE = re.compile(r'"#/components/schemas/([^"]+)"')


def document_parts(app: FastAPI) -> dict[Path, dict[str, Any]]:
    """Returns the parts, by the file that stores each.

    A feature's part has its operations, its scopes, and all schemas that its operations use,
    including those of other features. The kernel's part has the rest.
    """
    document = deepcopy(app.openapi())
    schemas, security = (document["components"][key] for key in ("schemas", "securitySchemes"))
    scopes = security["OAuth2"]["flows"]["password"].pop("scopes")
    paths = document["paths"]
    parts = {}
    for feature in app.state.features:
        own: dict[str, Any] = {}
        for method, path in endpoints(feature.router):
            own.setdefault(path, {})[method.lower()] = paths[path].pop(method.lower())
        parts[Path("features", feature.name, FILE)] = {
            "paths": own,
            "scopes": {name: scopes[name] for name in feature.scopes},
            "schemas": _used_by(own, schemas),
        }
    kernels = {path: operations for path, operations in paths.items() if operations}
    parts[Path(FILE)] = {
        "openapi": document["openapi"],
        "info": document["info"],
        "paths": kernels,
        "security": security,
        "schemas": _used_by(kernels, schemas),
    }
    return parts


def write_parts(app: FastAPI, only: Collection[str] = ()) -> list[Path]:
    """Writes the parts of the named features, or all parts, and returns the files that differ."""
    wanted = {Path("features", name, FILE) for name in only}
    parts = {path: part for path, part in document_parts(app).items() if path in wanted or not only}
    changed = []
    for path, part in parts.items():
        text, file = json.dumps(part, indent=2, ensure_ascii=False) + "\n", ROOT / path
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
            changed.append(path)
    return changed


def _used_by(operations: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    pending: list[Any] = [operations]
    while pending:
        for name in REFERENCE.findall(json.dumps(pending.pop())):
            if name not in found:
                found[name] = schemas[name]
                pending.append(schemas[name])
    return dict(sorted(found.items()))
