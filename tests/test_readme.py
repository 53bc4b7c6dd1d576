"""The commands, settings and examples in README.md, CONTRIBUTING.md and docstrings work."""

import doctest
import importlib
import pkgutil
import re
import shutil
from itertools import chain
from pathlib import Path
from textwrap import dedent

import pytest
from pydantic_settings import BaseSettings
from typer.main import get_command

import app
import features
import shared
from app.commands import cli
from app.discovery import find_features
from shared.settings import Settings
from tests.repository_copies import ROOT, run

README = (ROOT / "README.md").read_text()
TEXTS = README + (ROOT / "CONTRIBUTING.md").read_text()
TOUR = re.compile(r"<!-- tour -->\n```bash\n(.*?)```", re.DOTALL)


NO_CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="the tour is taken with curl")


@NO_CURL
def test_the_tours_work_as_they_stand(address: str, tmp_path: Path) -> None:
    said = take_tours(address, tmp_path)
    for shown in ("ada@example.com", "201 Created", '"created":1', '"rejected":1', "Enamel mug"):
        assert shown in said


def take_tours(address: str, folder: Path) -> str:
    """Takes the tours and returns their output. Those in the READMEs of features follow that of the
    whole, in the same shell."""
    (first,) = TOUR.findall(README)
    texts = [path.read_text() for path in sorted(ROOT.glob("features/*/README.md"))]
    tour = "\n".join([first, *chain.from_iterable(map(TOUR.findall, texts))])
    here = re.sub(r"^API=.*$", f"API={address}", tour, count=1, flags=re.MULTILINE)
    assert here != tour
    (folder / ".curlrc").write_text("fail-with-body\n")
    done = run(folder, "bash", "-o", "errexit", "-o", "pipefail", "-c", here, CURL_HOME=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands_of(recipe: str, text: str = README) -> str:
    """Returns the commands, or the settings, of a recipe of the README, or of another text."""
    block = rf"^ *<!-- {recipe} -->\n *```\w+\n(.*?)^ *```"
    (commands,) = re.findall(block, text, re.DOTALL | re.MULTILINE)
    return dedent(commands)


def test_each_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"(?:^\$ |`)(?:[A-Z]+=\S+ )?make ([a-z]+)", TEXTS, re.MULTILINE))
    assert shown
    assert shown <= targets


def test_each_command_that_is_shown_exists() -> None:
    commands = getattr(get_command(cli), "commands")  # noqa: B009  # not in Typer's type
    shown = set(re.findall(r"python -m app ([a-z][a-z-]*)", TEXTS))
    assert shown
    assert shown <= set(commands)


def test_each_setting_that_is_shown_exists() -> None:
    classes: list[type[BaseSettings]] = [Settings]
    classes += [feature.settings for feature in find_features() if feature.settings]
    known = {f"APP_{name}".upper() for settings in classes for name in settings.model_fields}
    shown = set(re.findall(r"\bAPP_[A-Z_]+[A-Z]\b", TEXTS)) - {"APP_TEST_DATABASE_URL"}
    assert shown
    assert shown <= known


def test_the_examples_in_docstrings_work() -> None:
    attempted = 0
    for package in (app, features, shared):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name == "app.__main__" or ".tests" in module.name:
                continue
            failed, tried = doctest.testmod(importlib.import_module(module.name))
            assert failed == 0, module.name
            attempted += tried
    assert attempted
