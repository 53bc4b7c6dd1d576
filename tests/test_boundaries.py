"""Each boundary between slices is held: a deliberate breach is caught by its name."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT = Path(sys.executable).with_name("lint-imports")

KERNEL = "The kernel knows no feature"
NEIGHBOURS = "Features meet only through their __init__"
CYCLES = "Features depend on each other without cycles"
HANDLERS = "Handlers know no HTTP and no router"


def lint(root: Path) -> str:
    """What import-linter says of the code in `root`."""
    done = subprocess.run([LINT, "--no-cache"], cwd=root, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code in a folder of the test's own, to be spoilt."""
    for package in ("app", "features", "shared"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("tests"))
    (tmp_path / "tests").mkdir()
    for file in ("pyproject.toml", "tests/boundaries.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def test_the_code_keeps_every_contract(copy: Path) -> None:
    said = lint(copy)
    for contract in (KERNEL, NEIGHBOURS, CYCLES, HANDLERS):
        assert f"{contract} KEPT" in said


@pytest.mark.parametrize(
    ("file", "statement", "contract"),
    [
        ("shared/errors.py", "import features.items", KERNEL),
        ("features/items/router.py", "import features.users.tables", NEIGHBOURS),
        ("features/users/tables.py", "import features.items", CYCLES),
        ("features/users/handlers.py", "import fastapi", HANDLERS),
        ("features/items/handlers/single.py", "import features.items.router", HANDLERS),
    ],
)
def test_a_breach_is_caught_by_name(copy: Path, file: str, statement: str, contract: str) -> None:
    path = copy / file
    if not path.exists():  # a module that became a package of the same name
        path = path.with_suffix("") / "__init__.py"
    path.write_text(f"{path.read_text()}\n{statement}\n")
    assert f"{contract} BROKEN" in lint(copy)


def test_a_check_that_finds_no_slices_fails(copy: Path) -> None:
    for folder in (copy / "features").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    assert f"{NEIGHBOURS} BROKEN" in lint(copy)
