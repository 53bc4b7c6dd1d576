"""Each `.env.example` lists exactly the existing settings, with their actual defaults."""

import os
import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from app.discovery import find_features
from shared.settings import Settings, load_settings
from tests.repository_copies import ROOT

EXAMPLES = [
    pytest.param(ROOT / ".env.example", Settings, id="kernel"),
    *(
        pytest.param(ROOT / f"features/{f.name}/.env.example", f.settings, id=f.name)
        for f in find_features()
        if f.settings
    ),
]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("APP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # so that the developer's .env is not read


def documented(example: Path) -> dict[str, str]:
    return dict(re.findall(r"^#(APP_\w+)=(.*)$", example.read_text(), re.MULTILINE))


@pytest.mark.parametrize(("example", "settings"), EXAMPLES)
def test_an_example_file_documents_exactly_the_settings_there_are(
    example: Path, settings: type[BaseSettings]
) -> None:
    assert set(documented(example)) == {f"APP_{name}".upper() for name in settings.model_fields}


@pytest.mark.parametrize(("example", "settings"), EXAMPLES)
def test_an_example_file_shows_valid_values_and_the_true_defaults(
    example: Path, settings: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {name: value for name, value in documented(example).items() if value}
    for name, value in shown.items():
        monkeypatch.setenv(name, value)

    loaded = load_settings(settings)

    for name, field in settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if f"APP_{name}".upper() in shown and default:
            assert getattr(loaded, name) == default
