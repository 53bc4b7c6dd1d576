"""Hooks that schemathesis loads into its process: how to sign in, which failures to ignore."""

import os
import re
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.openapi.checks import (
    AllowHeaderMismatch,
    RejectedPositiveData,
    UndefinedStatusCode,
)

from tests.declarations import declared, declaring

CONTRACTS = declaring("contract").values()
UNDOCUMENTED_ERRORS = re.compile(
    "|".join(
        (
            "skip and cursor cannot be combined",  # from shared/web/pagination.py
            "was used for a different request",  # from shared/web/idempotency.py
            *declared("contract", "UNDOCUMENTED_ERRORS"),
        )
    )
)
ANY_BODY_ACCEPTED = declared("contract", "ANY_BODY_ACCEPTED")
SESSION_ENDING = declared("contract", "SESSION_ENDING")
UNDOCUMENTED_VALUES = declared("contract", "UNDOCUMENTED_VALUES")
LINE_MEDIA_TYPES = sorted(
    set(chain(*(getattr(module, "LINE_MEDIA_TYPES", ()) for module in CONTRACTS)))
)
SIGN_INS = [module.sign_in for module in CONTRACTS if hasattr(module, "sign_in")]

FILES = re.compile(r"(?:audio|font|image|model|video)/")
"""The media types that only bytes have."""

if LINE_MEDIA_TYPES:
    schemathesis.serializer.alias(LINE_MEDIA_TYPES, "text/plain")


def _operation_id(case: schemathesis.Case[Any]) -> str:
    return str(case.operation.definition.raw.get("operationId"))


@cache
def _client(address: str) -> httpx.Client:
    return httpx.Client(base_url=address)


ended: list[str] = []
"""The operation id of each call that has ended an account or a session."""


def _account(case: schemathesis.Case[Any], _context: schemathesis.AuthContext) -> str:
    """Returns the cache key of an account to call the operation with.

    Operations that end their account or session use another one, new after each success.
    """
    return f"to be ended, {len(ended)}" if _operation_id(case) in SESSION_ENDING else "lasting"


@schemathesis.auth(cache_by_key=_account)
class Account:
    """Signs in to a new account; schemathesis repeats this when the credentials are refused."""

    def get(
        self, case: schemathesis.Case[Any], _context: schemathesis.AuthContext
    ) -> dict[str, str]:
        assert len(SIGN_INS) == 1, "one feature's tests/contract.py has to define sign_in()"
        client = _client(str(case.operation.base_url))
        headers: dict[str, str] = SIGN_INS[0](client, os.environ["APP_DATABASE_URL"])
        return headers

    def set(
        self,
        case: schemathesis.Case[Any],
        data: dict[str, str],
        _context: schemathesis.AuthContext,
    ) -> None:
        case.headers.update(data)


@schemathesis.hook
def before_load_schema(_context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Leaves out the streams of events, which do not end, and sends any bytes as files."""
    for path in raw_schema["paths"].values():
        for method in [method for method, operation in path.items() if streams_events(operation)]:
            del path[method]
        bodies = chain(*(each.get("requestBody", {}).get("content", ()) for each in path.values()))
        if files := [media_type for media_type in bodies if FILES.match(media_type)]:
            schemathesis.serializer.alias(files, "application/octet-stream")


def streams_events(operation: dict[str, Any]) -> bool:
    content = operation["responses"].get("200", {}).get("content", {})
    return "text/event-stream" in content


@schemathesis.hook
def filter_failure(
    _context: schemathesis.HookContext,
    failure: Failure,
    case: schemathesis.Case[Any],
    response: Response,
) -> bool:
    """Drops the failures that come from rules which the OpenAPI document cannot express."""
    match failure:
        case RejectedPositiveData() if response.status_code == 422:
            problem = response.json()
            reasons = [error["detail"] for error in problem.get("errors", [problem])]
            return not all(UNDOCUMENTED_ERRORS.search(reason) for reason in reasons)
        case AcceptedNegativeData():
            return _operation_id(case) not in ANY_BODY_ACCEPTED and not _has_more_accepted(
                case.body
            )
        case AllowHeaderMismatch() | UndefinedStatusCode():
            paths = tuple(case.operation.schema.raw_schema["paths"])
            return _shape(str(case.operation.path)) not in _shared_shapes(paths)
    return True


def _has_more_accepted(body: object) -> bool:
    return isinstance(body, dict) and any(
        re.search(pattern, str(body.get(field, "")))
        for field, pattern in UNDOCUMENTED_VALUES.items()
    )


def _shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


@cache
def _shared_shapes(paths: tuple[str, ...]) -> set[str]:
    """Returns the shapes of paths that differ from another path only in parameter names.

    A request to one of them also matches the other, whose methods are then allowed as well.
    """
    shapes = [_shape(path) for path in paths]
    return {shape for shape in shapes if shapes.count(shape) > 1}


@schemathesis.hook
def after_call(
    _context: schemathesis.HookContext, case: schemathesis.Case[Any], response: Response
) -> None:
    """Records the status of each response, and the phase of the run."""
    if _operation_id(case) in SESSION_ENDING and response.status_code < 400:
        ended.append(_operation_id(case))
    phase = case.meta.phase.name.value if case.meta else ""
    with Path(os.environ["CONTRACT_ANSWERS"]).open("a") as answers:
        answers.write(f"{_operation_id(case)} {response.status_code} {phase}\n")
