"""`make test changed=…` runs only the suites that a change can affect."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from fastapi import APIRouter

from app.scaffold.affected import affected_by
from shared.feature import Feature
from tests.repository_copies import ROOT, copy_repository, run, run_app

FEATURES = [
    Feature(name=name, router=APIRouter(), depends_on=depends_on)
    for name, depends_on in (("users", ()), ("items", ("users",)), ("search", ("items",)))
]


@pytest.mark.parametrize(
    ("files", "affected"),
    [
        ([], []),
        (["README.md", "features/users/notes.md"], []),
        (["features/search/router.py"], ["search"]),
        (["features/items/tests/test_items.py"], ["items", "search"]),
        (["migrations/items/0002_colour.py"], ["items", "search"]),
        (["features/search/tasks.py", "features/users/tables.py"], ["users", "items", "search"]),
        (["features/items/router.py", "shared/problems.py"], None),
        (["migrations/env.py"], None),
        (["migrations/shared/0002_mail.py"], None),
        (["features/__init__.py"], None),
        (["features/gone/router.py"], None),
        (["tests/test_errors.py"], None),
        (["Makefile"], None),
    ],
)
def test_a_change_affects_those_that_depend_on_it(
    files: Sequence[str], affected: list[str] | None
) -> None:
    assert affected_by(files, FEATURES) == affected


@pytest.mark.verify
def test_the_change_is_what_git_says(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    for command in (
        ("init", "--initial-branch=main"),
        ("add", "--all"),
        ("-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "--message=all"),
    ):
        assert run(tmp_path, "git", *command).returncode == 0
    assert run_app(tmp_path, "affected", "main").stdout == "\n"
    (tmp_path / "features/items/new.py").write_text("")
    assert run_app(tmp_path, "affected", "main").stdout.split()[0] == "items"
    assert run_app(tmp_path, "affected", "nowhere").stderr.startswith("error: git: ")


def test_after_any_change_the_tests_across_features_run() -> None:
    done = run(
        ROOT,
        *("make", "--dry-run", "--no-print-directory", "--old-file=setup", "test", "changed=main"),
    )
    command = done.stdout.rsplit("pytest", 1)[1]
    across = [ROOT / word for word in command.split() if word.startswith("tests/")]
    assert {"architecture", "contract", "test_readme.py"} == {path.name for path in across}
    assert all(path.exists() for path in across)
