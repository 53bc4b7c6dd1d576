"""Each boundary between slices is held: a deliberate breach is caught by its name."""

import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parent.parent
LINT = Path(sys.executable).with_name("lint-imports")

KERNEL = "The kernel knows no feature"
NEIGHBOURS = "Features meet only through their __init__"
CYCLES = "Features depend on each other without cycles"
HANDLERS = "Handlers know no HTTP and no router"
TABLES = "Features touch only their own tables"
IDS = {
    KERNEL: "kernel",
    NEIGHBOURS: "neighbours",
    CYCLES: "cycles",
    HANDLERS: "handlers",
    TABLES: "tables",
}


def lint(root: Path, *contracts: str) -> str:
    """What import-linter says of the code in `root`."""
    only = [f"--contract={IDS[contract]}" for contract in contracts]
    done = subprocess.run([LINT, "--no-cache", *only], cwd=root, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code in a folder of the test's own, to be spoilt."""
    for package in ("app", "features", "migrations", "shared"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("tests"))
    (tmp_path / "tests").mkdir()
    for file in ("pyproject.toml", "tests/boundaries.py", "tests/ownership.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def test_the_code_keeps_every_contract(copy: Path) -> None:
    said = lint(copy)
    for contract in IDS:
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
    assert f"{contract} BROKEN" in lint(copy, contract)


def test_each_reach_for_a_neighbours_table_is_caught(copy: Path) -> None:
    spoilt = {
        "features/items/handlers/single.py": """
            statement = "UPDATE users SET name = NULL"
        """,
        "features/users/tokens.py": """
            statement = f"select count(*) from items where {ALGORITHM} = 1"
            other = "DELETE FROM idempotency_keys"
        """,
        "features/users/tables.py": """
            class Wish(Timestamped, table=True):
                item_id: UUID = Field(foreign_key="items.id", primary_key=True)
        """,
        "features/items/demo.py": """
            from features.users.tables import User
            user = User(email="ada@example.com")
        """,
        "migrations/items/0001_items.py": """
            def upgrade():
                op.add_column("users", sa.Column("item_id", sa.Uuid()))
        """,
        "migrations/users/0001_users.py": """
            def downgrade():
                op.execute("TRUNCATE items")
        """,
    }
    for file, code in spoilt.items():
        path = copy / file
        path.write_text(f"{path.read_text()}\n{dedent(code)}")
    said = " ".join(lint(copy, TABLES).split())
    for breach in (
        "features/items/handlers/single.py writes to users, which belongs to users",
        "features/users/tokens.py reads items, which belongs to items",
        "features/users/tokens.py writes to idempotency_keys, which belongs to shared",
        "features.users.tables.Wish refers to items, which belongs to items",
        "features/items/demo.py writes to users, which belongs to users",
        "migrations/items/0001_items.py writes to users, which belongs to users",
        "migrations/users/0001_users.py writes to items, which belongs to items",
    ):
        assert breach in said
    assert f"{TABLES} BROKEN" in said


def test_an_import_of_a_feature_that_is_not_declared_is_caught(copy: Path) -> None:
    path = copy / "features/items/__init__.py"
    path.write_text(path.read_text().replace('depends_on=("users",)', "depends_on=()"))
    assert "items does not depend on users" in " ".join(lint(copy, TABLES).split())


def test_a_check_that_finds_no_slices_fails(copy: Path) -> None:
    for folder in (copy / "features").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    said = lint(copy, NEIGHBOURS, TABLES)
    assert f"{NEIGHBOURS} BROKEN" in said
    assert f"{TABLES} BROKEN" in said
