"""The layout holds: any feature that nothing depends on can be deleted, and nothing notices."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shared.features import find_features
from shared.migrations import load_revisions
from shared.testing import Server
from tests.serving import environment

ROOT = Path(__file__).parent.parent
FEATURES = [feature.name for feature in find_features()]
NEEDED = {other for feature in find_features() for other in feature.depends_on}
MODULES = ("handlers", "router", "schemas", "tables")
IMPORT_ALL_OF_SHARED = """
import importlib, pkgutil, sys, shared
for module in pkgutil.walk_packages(shared.__path__, "shared."):
    importlib.import_module(module.name)
print(*sorted(name for name in sys.modules if name.startswith("features.")))
"""


def run(folder: Path, *arguments: str, **settings: str) -> str:
    """What Python says when it runs with these arguments in this folder; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(settings),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_kernel_knows_no_feature() -> None:
    assert run(ROOT, "-c", IMPORT_ALL_OF_SHARED).strip() == ""


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


@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in NEEDED])
def test_a_feature_can_be_deleted(feature: str, server: Server, tmp_path: Path) -> None:
    for folder in ("app", "features", "migrations", "shared", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for file in ("pyproject.toml", "conftest.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    shutil.rmtree(tmp_path / "features" / feature)
    shutil.rmtree(tmp_path / "migrations" / feature)

    assert f'"{feature}' not in run(tmp_path, "-m", "app", "openapi")
    left = [name for name in FEATURES if name != feature]
    suites = [f"features/{name}/tests/test_{name}.py" for name in left]
    across = ["tests/test_privacy.py", "tests/test_migrations.py"]
    wanted = [suite for suite in (*suites, *across) if (tmp_path / suite).exists()]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    said = run(tmp_path, "-m", "pytest", *options, *wanted, test_database_url=server.admin_url)
    assert " passed" in said
