"""`make migration` writes revisions that run as they are: up, down, and with their branch alone."""

import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from tests.kit import Server
from tests.repository_copies import copy_repository, last_revision, run, run_app, run_suite

pytestmark = [pytest.mark.verify, pytest.mark.timeout(300)]

UP_DOWN_UP = """
import sys
from alembic import command
from app.migrations import alembic_config
config = alembic_config(sys.argv[1])
for run, target in (
    (command.upgrade, "orders@head"), (command.downgrade, "orders@-1"),
    (command.upgrade, "orders@head"), (command.downgrade, "orders@base"),
    (command.upgrade, "orders@head"),
):
    run(config, target)
"""
COMMIT = ("-c", "user.name=ada", "-c", "user.email=ada@example.com", "commit", "-m", "work")
Change = Callable[[str, str], None]
Revise = Callable[[], str]


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with a new feature `orders`."""
    folder = tmp_path_factory.mktemp("orders")
    copy_repository(folder)
    done = run_app(folder, "new-feature", "orders")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def code(orders: Path, tmp_path: Path) -> Path:
    return copytree(orders, tmp_path / "code")


@pytest.fixture
def tables(code: Path) -> Change:
    """Replaces text in the tables of orders."""

    def change(old: str, new: str) -> None:
        path = code / "features/orders/tables.py"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


@pytest.fixture
def revise(code: Path, server: Server, empty_database: str) -> Revise:
    """Writes a revision, runs its branch up and down, and returns its text."""

    def write() -> str:
        written = set(code.glob("migrations/orders/*.py"))
        done = run_app(code, "migration", "orders", "change", database=server.admin_url)
        assert "Traceback" not in done.stderr, done.stderr
        (path,) = set(code.glob("migrations/orders/*.py")) - written
        done = run(code, sys.executable, "-c", UP_DOWN_UP, empty_database)
        assert done.returncode == 0, path.read_text() + done.stderr
        again = run_app(code, "migration", "orders", "again", database=server.admin_url)
        assert again.stderr == "error: the tables of 'orders' are as its migrations make them\n"
        return path.read_text()

    return write


def test_a_first_revision_depends_on_the_heads_it_was_written_against(code: Path) -> None:
    text = (code / "migrations/orders/0001_orders.py").read_text()
    assert f'depends_on = ("{last_revision(code, "users")}",)' in text


FOREIGN_KEY = 'ForeignKeyConstraint(["owner_id", "item_id"], ["items.owner_id", "items.id"])'


def test_a_later_revision_depends_on_a_feature_that_was_declared_since(
    code: Path, tables: Change, revise: Revise
) -> None:
    declared = code / "features/orders/feature.py"
    declared.write_text(declared.read_text().replace('("users",)', '("users", "items")'))
    tables("import Index", "import ForeignKeyConstraint, Index")
    tables("    __table_args__ = (\n", f"    __table_args__ = (\n        {FOREIGN_KEY},\n")
    tables("    title: str\n", "    title: str\n    item_id: UUID\n")
    assert f'depends_on = "{last_revision(code, "items")}"' in revise()
    tables("    title: str\n", "    title: str\n    size: int | None = None\n")
    assert "depends_on = None" in revise()


ENUM = "class Colour(StrEnum):\n    RED = 'r'\n    BLUE = \"b'\"\n\n\nclass Order("


def test_an_enum_type_is_created_extended_and_dropped(
    code: Path, tables: Change, revise: Revise, server: Server
) -> None:
    tables("from uuid", "from enum import StrEnum\nfrom uuid")
    tables("class Order(", ENUM)
    tables("    title: str\n", "    title: str\n    colour: Colour | None = None\n")
    assert "CREATE TYPE colour AS ENUM ('RED', 'BLUE')" in revise()
    tables("    RED = 'r'\n", "    GREEN = 'g'\n    RED = 'r'\n    PINK = 'p'\n")
    text = revise()
    assert "ADD VALUE IF NOT EXISTS 'GREEN' BEFORE 'RED'" in text
    assert "ADD VALUE IF NOT EXISTS 'PINK' AFTER 'RED'" in text
    tables("    RED = 'r'\n", "")
    done = run_app(code, "migration", "orders", "lose red", database=server.admin_url)
    assert "enum type colour has lost or moved values: from GREEN, RED, PINK, BLUE" in done.stderr
    tables("    colour: Colour | None = None\n", "")
    assert "DROP TYPE colour" in revise()


def test_a_table_with_an_enum_type_can_be_created_and_dropped(
    tables: Change, revise: Revise
) -> None:
    tables("from uuid", "from enum import StrEnum\nfrom uuid")
    tables("from sqlalchemy import Index", "from sqlalchemy import ARRAY, Enum, Index")
    tables("class Order(", ENUM)
    tables(
        "ORDERS = table_of",
        'class Parcel(Timestamped, table=True):\n    __tablename__ = "parcels"\n'
        "    id: UUID = Field(default_factory=uuid7, primary_key=True)\n    colour: Colour\n"
        "    others: list[Colour] = Field(sa_type=ARRAY(Enum(Colour)))\n\n\n"
        "ORDERS = table_of",
    )
    text = revise()
    assert text.count("CREATE TYPE colour") == 1
    assert text.count("create_type=False") == 2


def test_a_check_is_added_changed_and_dropped(tables: Change, revise: Revise) -> None:
    tables("from sqlalchemy import Index", "from sqlalchemy import CheckConstraint, Index")
    tables(
        "__table_args__ = (",
        '__table_args__ = (\n        CheckConstraint("size > 0", name="size"),',
    )
    tables("    title: str\n", "    title: str\n    size: int | None = None\n")
    assert "create_check_constraint" in revise()
    tables('"size > 0"', "\"size > 10 AND title <> ':no'\"")
    text = revise()
    assert text.index("drop_constraint(") < text.index("create_check_constraint(")
    tables('"size > 10 AND', '"size > width AND')
    tables("    title: str\n", "    title: str\n    width: int | None = None\n")
    text = revise()
    assert text.index("add_column(") < text.index("create_check_constraint(")
    tables('        CheckConstraint("size > width AND title <> \':no\'", name="size"),\n', "")
    assert "drop_constraint(" in revise()


def test_a_migration_that_fails_ends_the_tests_with_one_message(
    code: Path, server: Server, empty_database: str
) -> None:
    path = code / "migrations/orders/0001_orders.py"
    path.write_text(
        path.read_text()
        .replace('op.drop_table("orders")', "pass")
        .replace("def downgrade", "    op.execute('DROP TABLE nothing')\n\n\ndef downgrade")
    )
    for arguments in ([], ["-n", "2"]):
        done = run_suite(
            code,
            sys.executable,
            "-m",
            "pytest",
            "features/orders",
            *arguments,
            database=server.admin_url,
        )
        said = done.stdout + done.stderr
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert "migrations/orders/0001_orders.py:" in said
        assert 'UndefinedTableError: table "nothing" does not exist' in said
        assert "Traceback" not in said
        assert len(said.splitlines()) < 5, said
    migrated = run_app(code, "migrate", database=empty_database)
    assert "UndefinedTableError" in migrated.stderr
    assert "Traceback" not in migrated.stderr


@pytest.fixture
def repository(code: Path) -> Path:
    """A repository whose main branch has everything but orders."""
    for arguments in (
        ("init", "--initial-branch=main"),
        ("add", "."),
        ("reset", "--", "features/orders", "migrations/orders"),
        COMMIT,
        ("checkout", "-b", "add-orders"),
    ):
        done = run(code, "git", *arguments)
        assert done.returncode == 0, done.stderr
    return code


def test_an_unsafe_revision_is_named_with_what_to_do(
    repository: Path, tables: Change, server: Server
) -> None:
    code = repository
    tables("    title: str\n", "    title: str\n    colour: str\n")
    done = run_app(code, "migration", "orders", "add colour", database=server.admin_url)
    assert done.returncode == 1
    assert "adding-required-field" in done.stderr
    assert "migrations/orders/0002_add_colour.py is written. Mend it, or accept it" in done.stderr
    tables("    colour: str\n", "    colour: str | None = None\n")
    done = run_app(code, "migration", "orders", "--amend", database=server.admin_url)
    assert done.returncode == 0, done.stderr
    assert revisions_of(code) == ["0001_orders.py", "0002_add_colour.py"]


def revisions_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("migrations/orders/*.py"))


def test_the_last_revision_is_written_anew(
    repository: Path, tables: Change, revise: Revise, empty_database: str
) -> None:
    code, url = repository, empty_database
    assert run_app(code, "migrate", database=url).returncode == 0
    tables("    title: str\n", "    title: str\n    colour: str\n")
    done = run_app(code, "migration", "orders", "--amend", database=url)
    assert done.returncode == 0, done.stderr
    (name,) = revisions_of(code)
    text = (code / "migrations/orders" / name).read_text()
    assert text.startswith('"""Orders, private to their owner."""')
    for kept in ('revision = "orders_0001"', 'branch_labels = ("orders",)', '"colour"'):
        assert kept in text
    assert run_app(code, "migrate", database=url).returncode == 0
    tables("    colour: str\n", "    colour: str\n    size: int | None = None\n")
    revise()
    tables("    size: int | None = None\n", "    width: int | None = None\n")
    done = run_app(code, "migration", "orders", "add width", "--amend", database=url)
    assert done.returncode == 0, done.stderr
    assert revisions_of(code) == [name, "0002_add_width.py"]
    assert run_app(code, "migrate", database=url).returncode == 0


def test_a_revision_that_others_have_is_not_written_anew(
    repository: Path, empty_database: str
) -> None:
    done = run_app(repository, "migration", "users", "--amend", database=empty_database)
    assert done.returncode == 1
    name = max((repository / "migrations/users").glob("0*.py")).name
    assert f"others have migrations/users/{name}: commit " in done.stderr
    run(repository, "git", "add", ".")
    run(repository, "git", *COMMIT)
    run(repository, "git", "update-ref", "refs/remotes/origin/add-orders", "HEAD")
    done = run_app(repository, "migration", "orders", "--amend", database=empty_database)
    assert done.returncode == 1
    assert "others have migrations/orders/0001_orders.py: commit " in done.stderr
