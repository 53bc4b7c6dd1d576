"""Features are found in `features/`; the error for an invalid one names it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import features
from app.discovery import find_features
from shared.feature import FeatureError

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes features to a temporary folder that replaces `features/`."""
    monkeypatch.setattr(features, "__path__", [str(tmp_path)])
    before = dict(sys.modules)
    for name in before:
        if name.startswith("features."):
            monkeypatch.delitem(sys.modules, name)

    def write_feature(folder: str, *depends_on: str, code: str | None = None) -> None:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(code or declaration(folder, *depends_on))

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
    (tmp_path / "notes.py").touch()
    (tmp_path / "no_package").mkdir()
    assert names() == ["gardens", "trees", "apples"]


def test_without_feature_folders_there_are_no_features(write: Write) -> None:
    assert names() == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nonsense", "feature 'pears' cannot be imported: ModuleNotFoundError: No module"),
        ("1 / 0", "feature 'pears' cannot be imported: ZeroDivisionError: division by zero"),
        ("def (", "feature 'pears' cannot be imported: SyntaxError: invalid syntax"),
        ("'nothing'", "features/pears/__init__.py must export `feature = Feature(…)`"),
        ("feature = 'pears'", "features/pears/__init__.py must export `feature = Feature(…)`"),
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
