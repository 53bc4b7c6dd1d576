"""Each import-linter contract catches a deliberate violation, and names it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from tests.repository_copies import BIN, copy_repository, run, run_app

pytestmark = pytest.mark.verify
KERNEL = "The kernel knows no feature"
NEEDED = "The kernel has what features need, and no more"
NEIGHBOURS = "Features meet only through their __init__"
CYCLES = "Features depend on each other without cycles"
HANDLERS = "Handlers know no HTTP and no router"
TABLES = "Features touch only their own tables"
OWNERS = "Keys of private tables begin with their owner"
LOCKS = "Advisory locks are named by who takes them"
IDS = {
    KERNEL: "kernel",
    NEEDED: "kernel_needed",
    NEIGHBOURS: "neighbours",
    CYCLES: "cycles",
    HANDLERS: "handlers",
    TABLES: "tables",
    OWNERS: "owners",
    LOCKS: "locks",
}


def lint(root: Path, *contracts: str) -> str:
    """Returns the output of import-linter for the code in `root`."""
    only = [f"--contract={IDS[contract]}" for contract in contracts]
    done = run(root, str(BIN / "lint-imports"), "--no-cache", *only)
    return done.stdout + done.stderr


WISHES = {
    "features/wishes/__init__.py": "from features.wishes.tables import Wish",
    "features/wishes/feature.py": """
        from shared.feature import Feature
        feature = Feature(name="wishes", depends_on=("users", "items"))
    """,
    "features/wishes/handlers.py": "",
    "features/wishes/router.py": "",
    "features/wishes/tables.py": """
        from uuid import UUID
        from sqlmodel import Field
        from shared.db.tables import Timestamped
        class Wish(Timestamped, table=True):
            __tablename__ = "wishes"
            id: UUID = Field(primary_key=True)
    """,
}
"""A feature that depends on items; items do not depend on it."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the repository that the test can break, with one more feature."""
    copy_repository(tmp_path)
    append(tmp_path, WISHES)
    return tmp_path


def append(root: Path, code: Mapping[str, str]) -> None:
    """Adds code to the ends of files, which are made if there are none."""
    for file, text in code.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        with (root / file).open("a") as module:
            module.write(f"\n{dedent(text)}")


def test_the_code_keeps_every_contract(copy: Path) -> None:
    said = lint(copy)
    for contract in IDS:
        assert f"{contract} KEPT" in said


@pytest.mark.parametrize(
    ("file", "statement", "contract"),
    [
        ("shared/problems.py", "import features.items", KERNEL),
        ("features/items/router.py", "import features.users.accounts.tables", NEIGHBOURS),
        ("app/main.py", "from features.users.sessions import handlers", NEIGHBOURS),
        ("features/items/tests/test_items.py", "import features.users.accounts.tables", NEIGHBOURS),
        ("features/items/tests/test_items.py", "from features.users import accounts", NEIGHBOURS),
        ("features/items/tests/test_items.py", "from features.wishes import Wish", TABLES),
        ("features/users/accounts/tables.py", "import features.items", CYCLES),
        ("features/users/accounts/handlers.py", "import fastapi", HANDLERS),
        ("features/users/accounts/handlers.py", "import features.users.events.router", HANDLERS),
        ("features/items/handlers/crud.py", "import features.items.router", HANDLERS),
    ],
)
def test_a_violation_is_caught_by_its_contract(
    copy: Path, file: str, statement: str, contract: str
) -> None:
    path = copy / file
    if not path.exists():  # the module has become a package
        path = path.with_suffix("") / "__init__.py"
    path.write_text(f"{path.read_text()}\n{statement}\n")
    assert f"{contract} BROKEN" in lint(copy, contract)


def test_each_reach_for_a_neighbours_table_is_caught(copy: Path) -> None:
    spoilt = {
        "features/items/handlers/crud.py": """
            statement = "UPDATE users SET name = NULL"
        """,
        "features/users/access_tokens/jwt.py": """
            statement = f"select count(*) from items where {ALGORITHM} = 1"
            other = "DELETE FROM idempotency_keys"
        """,
        "features/users/accounts/tables.py": """
            class Gift(Timestamped, table=True):
                item_id: UUID = Field(foreign_key="items.id", primary_key=True)
        """,
        "features/items/demo.py": """
            from features.users.accounts.tables import User
            user = User(email="ada@example.com")
        """,
        "features/wishes/by_module.py": """
            import sqlalchemy
            import features.items
            statement = sqlalchemy.update(features.items.Item)
        """,
        "features/wishes/by_alias.py": """
            from sqlalchemy.dialects.postgresql import insert as add
            from features.items import Item as Thing
            statement = add(Thing)
        """,
        "features/wishes/by_table.py": """
            from features import items
            statement = items.Item.__table__.delete()
        """,
        "features/wishes/by_model.py": """
            from features import items
            thing = items.Item(title="Mug")
        """,
        "features/wishes/by_sql.py": """
            statement = "UPDATE public.items SET price = 1"
        """,
        "features/items/content_negotiation.py": """
            statement = "SELECT * FROM items AS item, public.wishes"
            other = "DELETE FROM outgoing_mail"
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
    append(copy, spoilt)
    said = " ".join(lint(copy, TABLES).split())
    for breach in (
        "features/items/handlers/crud.py writes to users, which belongs to users",
        "features/users/access_tokens/jwt.py reads items, which belongs to items",
        "features/users/access_tokens/jwt.py writes to idempotency_keys, which belongs to shared",
        "features.users.accounts.tables.Gift refers to items, which belongs to items",
        "features/items/demo.py writes to users, which belongs to users",
        "features/wishes/by_module.py writes to items, which belongs to items",
        "features/wishes/by_alias.py writes to items, which belongs to items",
        "features/wishes/by_table.py writes to items, which belongs to items",
        "features/wishes/by_model.py writes to items, which belongs to items",
        "features/wishes/by_sql.py writes to items, which belongs to items",
        "features/items/content_negotiation.py reads wishes, which belongs to wishes",
        "features/items/content_negotiation.py writes to outgoing_mail, which belongs to users",
        "migrations/items/0001_items.py writes to users, which belongs to users",
        "migrations/users/0001_users.py writes to items, which belongs to items",
    ):
        assert breach in said
    assert f"{TABLES} BROKEN" in said


def test_each_key_that_does_not_begin_with_the_owner_is_caught(copy: Path) -> None:
    tables = """
        from sqlalchemy import ForeignKeyConstraint, Index, UniqueConstraint
        class Gift(Timestamped, table=True):
            __tablename__ = "gifts"
            __table_args__ = (
                UniqueConstraint("code"),
                Index("uq_gifts_slug", "slug", unique=True),
                Index("ix_gifts_slug", "slug", "owner_id"),
                UniqueConstraint("owner_id", "slug"),
                ForeignKeyConstraint(["owner_id", "item_id"], ["items.owner_id", "items.id"]),
                ForeignKeyConstraint(["item_id", "owner_id"], ["items.id", "items.owner_id"]),
                ForeignKeyConstraint(["wish_id"], ["wishes.id"]),
            )
            id: UUID = Field(primary_key=True)
            owner_id: UUID = Field(foreign_key="users.id", primary_key=True)
            item_id: UUID
            wish_id: UUID
            code: str
            slug: str
    """
    append(copy, {"features/wishes/tables.py": tables})
    said = " ".join(lint(copy, OWNERS).split())
    for violation in (
        "pk_gifts of gifts must begin with owner_id: id, owner_id",
        "uq_gifts_code of gifts must begin with owner_id: code",
        "uq_gifts_slug of gifts must begin with owner_id: slug",
        "fk_gifts_item_id_owner_id of gifts must begin with owner_id, on both sides",
        "fk_gifts_wish_id of gifts refers to wishes, which has no owner_id",
        "fk_gifts_owner_id of gifts refers to users, which has no owner_id",
    ):
        assert violation in said
    assert said.count(" of gifts ") == 6
    assert f"{OWNERS} BROKEN" in said


def test_each_advisory_lock_that_could_meet_anothers_is_caught(copy: Path) -> None:
    spoilt = {
        "features/items/demo.py": """
            lock = func.pg_advisory_xact_lock(7)
            other = "SELECT pg_try_advisory_xact_lock( 7 )"
        """,
        "features/users/access_tokens/jwt.py": """
            name = f"SELECT pg_advisory_lock({advisory_lock('items.import')})"
            hashed = "SELECT pg_advisory_xact_lock(hashtext('items'))"
            KEY = 7_265_002
            constant = f"SELECT pg_advisory_xact_lock({KEY})"
        """,
        "features/users/rate_limits.py": """
            bound = "SELECT pg_advisory_xact_lock(:key)", {"key": 7_265_002}
        """,
        "migrations/items/0001_items.py": """
            backfill = f"SELECT pg_advisory_lock({advisory_lock('items.backfill')})"
        """,
        "shared/cache.py": """
            good = func.pg_advisory_lock(advisory_lock("shared.cache", key))
            bound = "SELECT pg_advisory_lock($1), pg_advisory_unlock_all()"
        """,
    }
    append(copy, spoilt)
    said = " ".join(lint(copy, LOCKS).split())
    assert f"{LOCKS} BROKEN" in said
    assert said.count("features/items/demo.py:") == 2
    assert said.count("takes a lock by a number") == 5
    assert "features/users/rate_limits.py:" in said
    assert "migrations/items" not in said
    assert "names a lock 'items.import', not 'users.…'" in said
    assert "shared/cache.py" not in said


def test_an_import_of_a_feature_that_is_not_declared_is_caught(copy: Path) -> None:
    path = copy / "features/items/feature.py"
    path.write_text(path.read_text().replace('depends_on=("users",)', "depends_on=()"))
    assert "items does not depend on users" in " ".join(lint(copy, TABLES).split())


def test_features_are_told_apart_where_their_names_are_alike(copy: Path) -> None:
    """Two features have a model of the same name, in a checkout below a folder named `tests`."""
    root = copy / "tests" / "checkout"
    root.mkdir()
    copy_repository(root)
    done = run_app(root, "new-feature", "invoices")
    assert done.returncode == 0, done.stderr
    for file in ("features/invoices/tables.py", "features/items/tables.py"):
        path = root / file
        path.write_text(f"""{path.read_text()}

class Line(Timestamped, table=True):
    __tablename__ = "lines_{len(file)}"
    id: UUID = Field(default_factory=uuid7, primary_key=True)
""")
    for feature in ("items", "invoices"):
        path = root / f"features/{feature}/lines.py"
        path.write_text(f"from features.{feature}.tables import Line\nline = Line()\n")
    assert f"{TABLES} KEPT" in lint(root, TABLES)
    path.write_text("statement = 'DELETE FROM users'\n")
    assert "lines.py writes to users" in " ".join(lint(root, TABLES).split())


def test_a_module_of_the_kernel_that_only_the_app_uses_is_caught(copy: Path) -> None:
    append(copy, {"shared/web/maps.py": "", "app/main.py": "import shared.web.maps"})
    said = lint(copy, NEEDED)
    assert f"{NEEDED} BROKEN" in said
    assert "No feature imports shared.web.maps." in said


def test_a_check_that_finds_no_slices_fails(copy: Path) -> None:
    for folder in (copy / "features").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    said = lint(copy)
    for contract in IDS.keys() - {LOCKS, OWNERS}:  # the kernel has some, too
        assert f"{contract} BROKEN" in said


def test_a_check_that_misses_the_handlers_of_a_slice_fails(copy: Path) -> None:
    (copy / "features/items/handlers").rename(copy / "features/items/usecases")
    said = lint(copy, HANDLERS)
    assert f"{HANDLERS} BROKEN" in said
    assert "There is no features.items.handlers: nothing was checked." in said
