"""Every revision is safe on a live service: squawk finds what would lock or break a table."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from alembic.script import Script

from app.migrations import ROOT, load_revisions
from app.scaffold.linting import sql_of, unsafe_operations
from shared.feature import FeatureError
from tests.repository_copies import copy_repository, run_app

REVISIONS = {script.revision: script for script in load_revisions().walk_revisions()}


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_revision_is_safe_on_a_live_table(revision: str) -> None:
    assert unsafe_operations(REVISIONS[revision]) == []


def test_every_file_is_a_revision_of_its_own() -> None:
    assert len(REVISIONS) == len(list(ROOT.glob("[a-z]*/[0-9]*.py"))) > 0


def revision(folder: Path, upgrade: str, accepted: str = "()") -> Script:
    path = folder / "0001_change.py"
    path.write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "revision = 'change'\ndown_revision = None\n"
        f"ACCEPTED = {accepted}\ndef upgrade():\n"
        f"    op.execute(\"SET LOCAL lock_timeout = '5s'\")\n{upgrade}\n"
    )
    spec = spec_from_file_location("change", path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return Script(module, "change", str(path))


@pytest.mark.parametrize(
    ("upgrade", "rule"),
    [
        (
            'op.add_column("items", sa.Column("size", sa.Integer(), nullable=False))',
            "adding-required",
        ),
        ('op.create_index("ix", "items", ["title"])', "require-concurrent-index"),
        ('op.drop_column("items", "title")', "ban-drop-column"),
        ('op.alter_column("items", "title", new_column_name="name")', "renaming-column"),
        ('op.alter_column("items", "description", nullable=False)', "adding-not-nullable"),
        ('op.execute("ALTER TABLE items ALTER price TYPE text")', "changing-column-type"),
        ('op.drop_index("ix")', "require-concurrent-index-deletion"),
    ],
)
def test_what_would_hurt_a_live_table_is_named(tmp_path: Path, upgrade: str, rule: str) -> None:
    (found,) = unsafe_operations(revision(tmp_path, f"    {upgrade}"))
    assert found.startswith("0001_change.py: ")
    assert f"\n  {rule}" in found


def test_what_is_accepted_in_the_revision_is_passed_over(tmp_path: Path) -> None:
    drop = '    op.drop_column("items", "title")'
    assert unsafe_operations(revision(tmp_path, drop, '("ban-drop-column",)')) == []


@pytest.mark.parametrize(
    "operation",
    [
        'create_index_concurrently("ix", "items", ["title"])',
        'drop_index_concurrently("ix", "items")',
    ],
)
def test_the_safe_ways_to_change_an_index_are_passed_over(tmp_path: Path, operation: str) -> None:
    safe = f"    from migrations import operations\n    operations.{operation}"
    assert unsafe_operations(revision(tmp_path, safe)) == []


@pytest.mark.parametrize(
    ("rule", "change", "function"),
    [
        ("creation", 'op.create_index("ix", "items", ["title"])', "create_index_concurrently"),
        ("deletion", 'op.drop_index("ix")', "drop_index_concurrently"),
    ],
)
def test_an_index_that_would_lock_is_refused_with_what_to_call_instead(
    tmp_path: Path, rule: str, change: str, function: str
) -> None:
    (found,) = unsafe_operations(revision(tmp_path, f"    {change}"))
    assert f"require-concurrent-index-{rule}" in found
    assert f"Call {function} of migrations/operations.py" in found


def test_a_backfill_is_read_as_one_update(tmp_path: Path) -> None:
    call = 'backfill("items", "title = \'a:b\'", where="title = \'10 %\'")'
    script = revision(tmp_path, f"    from migrations import operations\n    operations.{call}")
    assert "UPDATE items SET title = 'a:b' WHERE title = '10 %';" in sql_of(script, "upgrade")


@pytest.mark.parametrize(
    "loop",
    [
        'while op.get_bind().execute(sa.text("UPDATE items SET title = title")).rowcount: pass',
        'while op.execute("UPDATE items SET title = title").rowcount: pass',
    ],
)
def test_a_revision_that_needs_a_database_to_be_read_is_named(tmp_path: Path, loop: str) -> None:
    with pytest.raises(FeatureError, match=r"0001_change.py: upgrade\(\) .* call backfill of"):
        unsafe_operations(revision(tmp_path, f"    {loop}"))


def test_an_index_that_is_built_concurrently_by_hand_is_refused(tmp_path: Path) -> None:
    by_hand = (
        "    with op.get_context().autocommit_block():\n"
        "        op.execute(\"SET lock_timeout = '5s'\")\n"
        '        op.create_index("ix", "items", ["title"], postgresql_concurrently=True)'
    )
    (found,) = unsafe_operations(revision(tmp_path, by_hand))
    assert found.startswith("0001_change.py:10: op.create_index(")
    assert "\n  concurrently-by-hand: " in found


@pytest.mark.verify
def test_the_check_of_all_code_names_what_is_unsafe(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    assert run_app(tmp_path, "lint-migrations").returncode == 0
    path = tmp_path / "migrations/items/0001_items.py"
    path.write_text(
        path.read_text().replace("def downgrade", "    op.drop_table('items')\n\n\ndef downgrade")
    )
    done = run_app(tmp_path, "lint-migrations")
    assert done.returncode == 1
    assert "ban-drop-table" in done.stderr
