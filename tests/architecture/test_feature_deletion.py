"""Any feature that no other feature depends on can be deleted, and the rest still works."""

import shutil
import sys
from pathlib import Path

import httpx
import pytest
from alembic import command

from app.discovery import find_features
from app.migrations import alembic_config, has_revisions, load_revisions, upgrade
from shared.db.tables import table_owners
from tests.kit import Server, free_port
from tests.repository_copies import BIN, ROOT, copy_repository, run, run_app, run_suite
from tests.serving import serving

FEATURES = [feature.name for feature in find_features()]
NEEDED = {other for feature in find_features() for other in feature.depends_on}
TESTS_OF_DELETED_FEATURES = {
    "tests/architecture/test_dashboards.py::test_dashboard_and_alerts_use_existing_metrics": (
        "dashboard and alerts are one file for all features"
    ),
    "tests/test_readme.py::test_the_tour_works_as_it_stands": "the tour visits every feature",
}
"""The tests that are skipped after a feature is deleted, each with the reason."""

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
def test_a_feature_has_tests_and_a_branch_for_its_tables(feature: str) -> None:
    assert list((ROOT / "features" / feature).glob("tests/test_*.py")), f"{feature} has no tests"
    labels = {
        label for script in load_revisions().walk_revisions() for label in script.branch_labels
    }
    has_tables = feature in table_owners().values()
    assert has_revisions(feature) == has_tables, (
        f"{feature} has tables and no migrations/{feature}, or the other way about"
    )
    assert (feature in labels) == has_tables, f"migrations/{feature} is no branch"


@pytest.mark.verify
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["empty", "had the feature"])
@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in NEEDED])
def test_a_feature_can_be_deleted(
    feature: str, database: str, empty_database: str, tmp_path: Path
) -> None:
    """The remaining code still migrates and serves."""
    if database == "had the feature":
        upgrade(empty_database)
        command.downgrade(alembic_config(empty_database), f"{feature}@base")
    code = copy_without(feature, tmp_path / "code")
    migrated = run_app(code, "migrate", database=empty_database)
    assert migrated.returncode == 0, migrated.stderr
    settings = {"env": "test", "database_url": empty_database}
    with serving(tmp_path, free_port(), settings, code) as served:
        assert httpx.get(f"{served.address}/readyz", timeout=30).status_code == 200
        paths = httpx.get(f"{served.address}/openapi.json", timeout=30).json()["paths"]
    tags = {tag for path in paths.values() for one in path.values() for tag in one["tags"]}
    assert tags
    assert feature not in tags


@pytest.mark.verify
@pytest.mark.timeout(900)
@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in NEEDED])
def test_the_suite_passes_without_a_feature(feature: str, server: Server, tmp_path: Path) -> None:
    code = copy_without(feature, tmp_path)
    deselected = [f"--deselect={name}" for name in TESTS_OF_DELETED_FEATURES]
    test = (str(BIN / "python"), "-m", "pytest", "-q", "-n2", *deselected)
    done = run_suite(code, *test, database=server.admin_url)
    assert done.returncode == 0, done.stdout + done.stderr


def copy_without(feature: str, folder: Path) -> Path:
    copy_repository(folder)
    shutil.rmtree(folder / "features" / feature)
    shutil.rmtree(folder / "migrations" / feature, ignore_errors=True)  # not every feature has one
    return folder
