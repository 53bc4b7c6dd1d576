"""The API keeps what its OpenAPI document says: every operation, with good and bad input."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.settings import Settings
from tests.copying import BIN, ROOT, run

UNREACHED = {
    "auth_token": "needs a password or a token of an account",
    "passwords_change": "needs the password of the account",
    "passwords_reset": "needs a token from a mail",
    "search_search_by_vector": "needs as many numbers as the model has dimensions",
    "users_verify_email": "needs a token from a mail",
}
"""What cannot succeed with what the document tells, each with the reason."""


@pytest.mark.timeout(900)
def test_the_api_keeps_its_contract(address: str, settings: Settings, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    done = run(
        tmp_path,
        str(BIN / "schemathesis"),
        f"--config-file={ROOT / 'tests/contract/contract.toml'}",
        "run",
        f"{address}/openapi.json",
        database=settings.database_url or "",
        SCHEMATHESIS_HOOKS=str(ROOT / "tests/contract/contract_account.py"),
        PYTHONPATH=str(ROOT),
        CONTRACT_ANSWERS=str(answers),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_answers(answers, httpx.get(f"{address}/openapi.json").json())


def check_answers(answers: Path, document: dict[str, Any]) -> None:
    """What was tried has got beyond the door, and to the end where no id has to be known."""
    seen = defaultdict(set)
    followed = set()
    for line in answers.read_text().splitlines():
        operation, status, phase = line.split(" ")
        seen[operation].add(int(status))
        if phase == "stateful" and int(status) < 400:
            followed.add(operation)
    assert followed, "no link led to anything"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            name = operation["operationId"]
            assert seen[name] - {401, 403, 405}, f"{name} was never let in: {seen[name]}"
            if "{" not in path and name not in UNREACHED:
                assert min(seen[name]) < 400, f"{name} never succeeded: {seen[name]}"
