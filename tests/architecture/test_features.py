"""Features are found in `features/`; the error for an invalid one names it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import features
from app.discovery import find_features
from shared.feature import FeatureError
from tests.repository_copies import copy_repository, run

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes features to a temporary folder that replaces `features/`."""
    root = tmp_path / "features"
    root.mkdir()
    monkeypatch.setattr(features, "__path__", [str(root)])
    before = dict(sys.modules)
    for name in before:
        if name.startswith("features."):
            monkeypatch.delitem(sys.modules, name)

    def write_feature(
        folder: str, *depends_on: str, code: str | None = None, **modules: str
    ) -> None:
        (root / folder).mkdir()
        (root / folder / "__init__.py").touch()
        (root / folder / "feature.py").write_text(code or declaration(folder, *depends_on))
        for name, source in modules.items():
            (root / folder / f"{name}.py").write_text(source)

    yield write_feature
    for name in set(sys.modules) - set(before):
        if name.startswith("features."):
            del sys.modules[name]


def declaration(name: str, *depends_on: str) -> str:
    return (
        "from fastapi import APIRouter\n"
        "from shared.feature import Feature\n"
        f"feature = Feature(name={name!r}, router=APIRouter(), depends_on={depends_on!r})\n"
    )


def names() -> list[str]:
    return [feature.name for feature in find_features()]


def refusal() -> str:
    with pytest.raises(FeatureError) as refused:
        find_features()
    return str(refused.value)


def test_features_come_behind_what_they_depend_on(write: Write, tmp_path: Path) -> None:
    write("apples", "trees")
    write("gardens")
    write("trees", "gardens")
    (tmp_path / "features" / "notes.py").touch()
    (tmp_path / "features" / "no_package").mkdir()
    assert names() == ["gardens", "trees", "apples"]


def test_without_feature_folders_there_are_no_features(write: Write) -> None:
    assert names() == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nonsense", "features/pears/feature.py:1: ModuleNotFoundError: No module"),
        ("\n1 / 0", "features/pears/feature.py:2: ZeroDivisionError: division by zero"),
        ("\n\ndef (", "features/pears/feature.py:3: SyntaxError: invalid syntax"),
        ("\0", "features/pears"),
        ("'nothing'", "features/pears/feature.py must declare `feature = Feature(…)`"),
        ("feature = 'pears'", "features/pears/feature.py must declare `feature = Feature(…)`"),
        (declaration("plums"), "feature 'pears' declares the name 'plums'"),
        (
            declaration("pears", "trees"),
            "feature 'pears' depends on 'trees', which is not in features/",
        ),
        (declaration("pears", "pears"), "features depend on each other: pears → pears"),
    ],
)
def test_an_invalid_feature_is_named(write: Write, code: str, message: str) -> None:
    write("apples")
    write("pears", code=code)
    assert refusal().startswith(message)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("fields = {}\ntitle = fields['title']", "2: KeyError: 'title'"),
        ("def declare():\n    raise ValueError('no name')\ndeclare()", "2: ValueError: no name"),
        ("class Pear:\n  id = 1\n   title = 2", "3: IndentationError: unexpected indent"),
        ("import json\njson.loads('')", "2: JSONDecodeError: Expecting value: line 1 column 1"),
        (
            "from features.pears.feature import feature",
            "1: ImportError: cannot import name 'feature'",
        ),
        ("import ast\nast.parse('(')", "2: SyntaxError: '(' was never closed (<unknown>, line 1)"),
    ],
)
def test_a_failing_module_of_a_feature_is_named_with_its_line(
    write: Write, tables: str, message: str
) -> None:
    """The innermost line of the project, not that of the library which raised the error."""
    write("pears", code="import features.pears.schemas", schemas=SCHEMAS, tables=tables)
    assert refusal().startswith(f"features/pears/tables.py:{message}")


SCHEMAS = "from features.pears.tables import *"


def test_a_cycle_of_dependencies_is_named(write: Write) -> None:
    write("apples", "pears")
    write("pears", "plums")
    write("plums", "apples")
    said = refusal()
    assert said.startswith("features depend on each other: ")
    assert said.count("→") == 3


def test_a_feature_brings_along_what_it_depends_on(write: Write) -> None:
    write("apples", "trees")
    write("gardens")
    write("pears", "trees")
    write("trees", "gardens")
    found = find_features("apples")
    assert [feature.name for feature in found] == ["gardens", "trees", "apples"]
    with pytest.raises(FeatureError, match="there is no feature 'plums'; there are"):
        find_features("plums")


@pytest.mark.verify
def test_commands_and_tests_name_the_line_that_cannot_be_imported(tmp_path: Path) -> None:
    copy_repository(tmp_path)
    tables = tmp_path / "features" / "items" / "tables.py"
    code = tables.read_text() + "FIELDS: dict[str, str] = {}\nTITLE = FIELDS['title']\n"
    tables.write_text(code)
    line = len(code.splitlines())
    for command in (
        "app serve",
        "app migration items title",
        "uvicorn app.asgi:app",
        "pytest features/items --feature=items",
        "pytest -n 2 features/items",
    ):
        done = run(tmp_path, sys.executable, "-m", *command.split(), APP_ENV="dev")
        assert done.returncode != 0, command
        said = done.stdout + done.stderr
        assert f"features/items/tables.py:{line}: KeyError: 'title'" in said, (command, said)
        assert "Traceback" not in said, command
