"""The recipes in CONTRIBUTING.md are parts of features that are migrated and tested in a copy."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from tests.architecture.recipe_features import ALBUMS
from tests.architecture.recipe_shipments import SHIPMENTS
from tests.architecture.test_example_features import TESTS_OF_ALL_FEATURES
from tests.kit import Server
from tests.repository_copies import ROOT, copy_repository, make, pytest_in, run_app, write_files

GENRES = """
    op.execute("INSERT INTO genres (name) VALUES ('jazz'), ('rock')")


def downgrade"""


def test_each_recipe_is_code_of_the_example() -> None:
    _, recipes = (ROOT / "CONTRIBUTING.md").read_text().split("\n## Recipes\n")
    snippets = re.findall(r"```python\n(.*?)```", recipes, re.DOTALL)
    assert len(snippets) > 5
    code = [dedent(text) for text in (ALBUMS | SHIPMENTS).values()]
    for snippet in snippets:
        for part in snippet.strip().split("\n\n\n"):
            assert any(part in text for text in code), f"no file of the examples has:\n{part}"


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """A copy of the repository with the features, whose migrations are generated."""
    folder = tmp_path_factory.mktemp("recipes")
    copy_repository(folder)
    write_files(folder, ALBUMS | SHIPMENTS)
    for feature in ("albums", "shipments"):
        done = run_app(folder, "migration", feature, feature, database=server.admin_url)
        assert done.returncode == 0, done.stderr
    revision = folder / "migrations/albums/0001_albums.py"
    revision.write_text(revision.read_text().replace("\n\n\ndef downgrade", GENRES))
    done = run_app(folder, "keep-openapi")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.verify
@pytest.mark.timeout(1200)
def test_the_example_keeps_to_what_is_checked(code: Path, server: Server) -> None:
    make(code, "check", database=server.admin_url)


@pytest.mark.verify
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "tests",
    [
        ("features/albums", "--feature=albums"),
        ("features/shipments", "--feature=shipments"),
        TESTS_OF_ALL_FEATURES,
        ("tests/contract/test_contract.py", "tests/contract/test_declared_errors.py"),
    ],
    ids=["albums", "shipments", "those of all features", "their contract"],
)
def test_the_tests_of_the_example_pass(code: Path, server: Server, tests: tuple[str, ...]) -> None:
    done = pytest_in(code, server.admin_url, *tests)
    assert done.returncode == 0, done.stdout
