"""An invalid setting stops the start with one line that names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import APIRouter
from pydantic_settings import BaseSettings
from sqlalchemy.engine import make_url

from app.discovery import find_features
from app.main import create_app
from shared.feature import Feature
from shared.settings import ConfigurationError, FeatureSettings, Settings, load_settings
from tests.kit import Server, run_command
from tests.serving import ROOT, environment


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("APP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # so that the developer's .env is not read


KEY = "a secret for tests, 32 bytes or more"


def test_each_wrong_value_is_told_in_a_line_of_its_own() -> None:
    wrong = {"APP_LOG_LEVEL": "loud", "APP_DATABASE_POOL_SIZE": "0", "APP_REDIS_URL": "http://a"}
    ended = run_command("migrate", **wrong)
    assert ended.exit_code == 1
    lines = ended.stderr.splitlines()
    assert sorted(line.split(": ")[:2] for line in lines) == [
        ["error", name] for name in sorted(wrong)
    ]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"APP_LOG_LEVEL": "loud"}, "APP_LOG_LEVEL: Input should be 'debug', 'info', "),
        (
            {"APP_DATABASE_POOL_SIZE": "1"},
            "APP_DATABASE_POOL_SIZE: Input should be greater than or",
        ),
        ({"APP_DATABASE_URL": "mysql://host/db"}, "APP_DATABASE_URL: must be a URL like postgres"),
        ({"APP_DATABASE_URL": "postgresql://h:x/db"}, "APP_DATABASE_URL: must be a URL like post"),
        (
            {"APP_DATABASE_DIRECT_URL": "postgresql://host/db"},
            "APP_DATABASE_DIRECT_URL leads past a pooler, which APP_DATABASE_URL must name",
        ),
        ({"APP_REDIS_URL": "redis://h:x"}, "APP_REDIS_URL: Port could not be cast"),
        ({"APP_SENTRY_DSN": "nonsense"}, "APP_SENTRY_DSN: must be a URL like https://key@"),
        ({"APP_CORS_ORIGINS": "https://a.example"}, "APP_CORS_ORIGINS: must be JSON"),
        ({"APP_SECRET_KEY": "short"}, "APP_SECRET_KEY: must have at least 32 bytes"),
        ({"APP_ENV": "prod"}, "APP_DATABASE_URL is required when APP_ENV=prod"),
        (
            {"APP_ENV": "prod", "APP_DATABASE_URL": "postgresql://host/db", "APP_SECRET_KEY": ""},
            "APP_SECRET_KEY is required when APP_ENV=prod",
        ),
        (
            {"APP_ENV": "prod", "APP_DATABASE_URL": "postgresql://host/db", "APP_SECRET_KEY": KEY},
            "APP_PUBLIC_URL is required when APP_ENV=prod",
        ),
    ],
)
def test_a_wrong_value_is_told_in_one_line_that_names_the_variable(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError) as raised:
        load_settings(Settings)

    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings", [Settings, *(f.settings for f in find_features() if f.settings)]
)
def test_a_blank_variable_is_one_that_is_not_set(
    settings: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = settings()
    for name in settings.model_fields:
        monkeypatch.setenv(f"APP_{name}".upper(), "")

    assert load_settings(settings) == expected


def test_an_env_file_is_read_in_development_and_never_by_tests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("APP_LOG_LEVEL=error\n")
    assert load_settings(Settings).log_level == "error"
    assert Settings().log_level == "info"
    monkeypatch.setenv("APP_ENV", "test")
    assert load_settings(Settings).log_level == "info"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("redis://cache", "redis://cache:6379"),
        ("rediss://:secret@cache/2", "rediss://:secret@cache:6379/2"),
        ("redis://[::1]:7000/0", "redis://[::1]:7000/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_redis_url_may_leave_out_the_port(
    given: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_REDIS_URL", given)
    assert load_settings(Settings).redis_url == read


def test_a_wrong_value_of_a_feature_stops_the_start_too(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    class OrderSettings(FeatureSettings):
        order_limit: int = 5

    orders = Feature(name="orders", router=APIRouter(), settings=OrderSettings)
    monkeypatch.setenv("APP_ORDER_LIMIT", "many")

    with pytest.raises(ConfigurationError, match="APP_ORDER_LIMIT: Input should be a valid int"):
        create_app(settings, [orders])


@pytest.mark.parametrize("command", ["openapi", "worker", "migrate"])
def test_a_command_with_a_wrong_value_ends_with_one_line(command: str) -> None:
    ended = run_command(command, APP_DATABASE_POOL_SIZE="many")

    assert ended.exit_code == 1
    assert ended.stderr.startswith("error: APP_DATABASE_POOL_SIZE: Input should be a valid int")
    assert ended.stderr.count("\n") == 1


@pytest.mark.verify
def test_a_server_with_a_wrong_value_does_not_start() -> None:
    wrong = {"database_url": "postgresql://host/db", "database_pool_size": "many"}
    ended = subprocess.run(
        [sys.executable, "-m", "app", "serve"],
        cwd=ROOT,
        env=environment(wrong),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith("error: APP_DATABASE_POOL_SIZE: Input should be a valid int")
    assert ended.stderr.count("\n") == 1


def test_a_migration_without_its_database_ends_with_one_line(server: Server) -> None:
    ended = run_command("migrate", APP_DATABASE_URL=server.url("no_such_database"))

    assert ended.exit_code == 1
    assert ended.stderr.startswith('error: the database cannot be used: database "no_such_data')
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("mode", ["disable", "prefer"])
def test_a_database_url_may_have_what_libpq_knows(
    server: Server, database_url: str, tmp_path: Path, mode: str
) -> None:
    options = {"sslmode": mode, "application_name": "mine"}
    with_mode = make_url(database_url).set(query=options).render_as_string(hide_password=False)
    file = tmp_path / "items.jsonl"
    file.touch()

    migrated = run_command("migrate", APP_DATABASE_URL=with_mode)
    imported = run_command(
        "import", str(file), "--owner", "x@example.com", APP_DATABASE_URL=with_mode
    )

    assert migrated.exit_code == 0, migrated.stderr
    assert imported.stderr == "error: There is no account x@example.com\n"


def test_an_import_into_a_database_without_tables_ends_with_one_line(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "items.jsonl"
    file.touch()
    empty = server.admin_url

    ended = run_command("import", str(file), "--owner", "x@example.com", APP_DATABASE_URL=empty)

    assert ended.exit_code == 1
    assert ended.stderr.startswith("error: the database has no tables; run `python -m app migrate`")
    assert ended.stderr.count("\n") == 1


@pytest.mark.verify
def test_a_command_ends_without_a_word_where_nobody_reads_its_output() -> None:
    """As in `python -m app openapi | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "app", "openapi"],
            cwd=ROOT,
            env=environment({"database_url": "postgresql://host/db"}),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )

    assert (ended.returncode, ended.stderr) == (1, "")
