"""Every operation behaves as the OpenAPI document says, with valid and invalid input."""

import os
import secrets
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.settings import Settings
from tests.declarations import declared
from tests.repository_copies import BIN, ROOT, run_suite

SEED = "CONTRACT_SEED"
"""The environment variable that repeats a run. Each run prints its seed, by default random."""

UNICODE_TABLES = ROOT / ".hypothesis"
"""Where Hypothesis stores its Unicode tables, which take a second to create."""

ALWAYS_REFUSED = {401, 403, 405}
NEVER_SUCCEEDING = declared("contract", "NEVER_SUCCEEDING")


@pytest.mark.timeout(900)
def test_the_api_keeps_its_contract(address: str, settings: Settings, tmp_path: Path) -> None:
    check_contract(address, settings, tmp_path)


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_the_api_keeps_its_contract_at_length(
    address: str, settings: Settings, tmp_path: Path
) -> None:
    check_contract(address, settings, tmp_path, "--max-examples=100")


def check_contract(address: str, settings: Settings, folder: Path, *options: str) -> None:
    seed = os.environ.get(SEED) or str(secrets.randbelow(2**32))
    again = f"{SEED}={seed} repeats this run"
    print(again)  # noqa: T201  # pytest shows it if the test fails or times out
    answers = folder / "answers"
    done = run_suite(
        folder,
        str(BIN / "schemathesis"),
        f"--config-file={ROOT / 'tests/contract/contract.toml'}",
        "run",
        f"--seed={seed}",
        *options,
        f"{address}/openapi.json",
        database=settings.database_url or "",
        SCHEMATHESIS_HOOKS=str(ROOT / "tests/contract/contract_hooks.py"),
        PYTHONPATH=str(ROOT),
        CONTRACT_ANSWERS=str(answers),
        HYPOTHESIS_STORAGE_DIRECTORY=str(UNICODE_TABLES),
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{again}"
    document = httpx.get(f"{address}/openapi.json").json()
    wrong = untested_operations(answers, document)
    assert wrong == [], again


def untested_operations(answers: Path, document: dict[str, Any]) -> list[str]:
    """Returns a line for each operation that was not really tested.

    That is one whose calls were all refused (401, 403, 405), or one that never succeeded although
    its path needs no id. Also returns a line if no link between operations was followed.
    """
    seen = defaultdict(set)
    followed = False
    for line in answers.read_text().splitlines():
        operation, status, phase = line.split(" ")
        seen[operation].add(int(status))
        followed |= phase == "stateful" and int(status) < 400
    wrong = [] if followed else ["no link led to anything"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            name = operation["operationId"]
            if "text/event-stream" in operation["responses"].get("200", {}).get("content", {}):
                continue  # contract_hooks.py leaves it out
            if not seen[name] - ALWAYS_REFUSED:
                wrong.append(f"{name} was never let in: {seen[name]}")
            elif "{" not in path and name not in NEVER_SUCCEEDING and min(seen[name]) >= 400:
                wrong.append(f"{name} never succeeded: {seen[name]}")
    return wrong
