"""The API keeps what its OpenAPI document says: every operation, with good and bad input."""

from pathlib import Path

import pytest

from shared.settings import Settings
from tests.copying import BIN, ROOT, run


@pytest.mark.timeout(300)
def test_the_api_keeps_its_contract(address: str, settings: Settings, tmp_path: Path) -> None:
    done = run(
        tmp_path,
        str(BIN / "schemathesis"),
        f"--config-file={ROOT / 'tests/contract.toml'}",
        "run",
        f"{address}/openapi.json",
        database=settings.database_url or "",
        SCHEMATHESIS_HOOKS=str(ROOT / "tests/contract_account.py"),
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 0, done.stdout + done.stderr
