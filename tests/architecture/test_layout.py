"""The layout holds: any feature that nothing depends on can be deleted, and nothing notices."""

import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from shared.features import find_features
from shared.migrations import load_revisions
from shared.testing import Server, free_port
from shared.testing.servers import drop_database, execute
from tests.copying import BIN, ROOT, copy_repository, run, run_app, run_suite
from tests.serving import serving

FEATURES = [feature.name for feature in find_features()]
NEEDED = {other for feature in find_features() for other in feature.depends_on}
MODULES = ("handlers", "router", "schemas", "tables")
LEFT_OUT = {
    "test_affected.py": "asks git, which a copy does not have",
    "resilience": "breaks processes for minutes",
    "test_boundaries.py": "spoils copies of the whole repository",
    "test_celery.py": "waits for a broker, and for what search would embed",
    "test_containers.py": "builds images",
    "test_contract.py": "sends thousands of requests",
    "test_doctor.py": "spoils copies of the whole repository",
    "test_embedded.py": "starts and kills PostgreSQL, which knows no feature",
    "test_layout.py": "is this",
    "test_merge.py": "copies, generates and tests in turn",
    "test_pooler.py": "starts servers for what the kernel does alone",
    "test_readiness.py": "starts and kills PostgreSQL, which knows no feature",
    "test_readme.py": "reads a document of all features",
    "test_replica.py": "starts servers for what the kernel does alone",
    "test_rollout.py": "copies and generates",
    "test_run.py": "starts PostgreSQL again and again, as a newcomer does",
    "test_scaffold.py": "copies, generates and tests in turn",
    "test_settings.py": "reads files that a copy has not",
    "test_shutdown.py": "starts servers for what the kernel does alone",
    "test_signals.py": "starts servers for what the kernel does alone",
}
"""The tests that the deletion of a feature does without, each with the reason."""

IMPORT_ALL_OF_SHARED = """
import importlib, pkgutil, sys, shared
for module in pkgutil.walk_packages(shared.__path__, "shared."):
    importlib.import_module(module.name)
print(*sorted(name for name in sys.modules if name.startswith("features.")))
"""


def test_the_kernel_knows_no_feature() -> None:
    done = run(ROOT, sys.executable, "-c", IMPORT_ALL_OF_SHARED)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_has_its_place_for_everything(feature: str) -> None:
    folder = ROOT / "features" / feature
    for module in MODULES:
        places = (folder / f"{module}.py", folder / module / "__init__.py")
        assert any(place.exists() for place in places), f"{feature} has no {module}"
    assert list(folder.glob("tests/test_*.py")), f"{feature} has no tests"
    labels = {
        label for script in load_revisions().walk_revisions() for label in script.branch_labels
    }
    assert feature in labels, f"migrations/{feature} is no branch"


@pytest.fixture
async def empty_database(server: Server) -> AsyncIterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    await execute(server.admin_url, f'CREATE DATABASE "{name}"')
    yield server.url(name)
    await drop_database(server.admin_url, name)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in NEEDED])
def test_a_feature_can_be_deleted(
    feature: str, server: Server, empty_database: str, tmp_path: Path
) -> None:
    """What is left migrates, serves, and passes its own tests."""
    code = tmp_path / "code"
    copy_repository(code)
    shutil.rmtree(code / "features" / feature)
    shutil.rmtree(code / "migrations" / feature)

    assert run_app(code, "migrate", database=empty_database).returncode == 0
    settings = {"env": "test", "database_url": empty_database}
    with serving(tmp_path, free_port(), settings, code) as served:
        assert httpx.get(f"{served.address}/readyz", timeout=30).status_code == 200
        paths = httpx.get(f"{served.address}/openapi.json", timeout=30).json()["paths"]
    tags = {tag for path in paths.values() for one in path.values() for tag in one["tags"]}
    assert tags
    assert feature not in tags

    left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
    test = (str(BIN / "python"), "-m", "pytest", "-q", "-n2", *left_out)
    done = run_suite(code, *test, database=server.admin_url)
    assert done.returncode == 0, done.stdout + done.stderr
