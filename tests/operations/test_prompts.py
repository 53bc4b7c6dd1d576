"""`python -m app shell`, `psql` and `reset`: the database of development at hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.discovery import find_features
from app.embedded import embedded_postgres
from tests.kit import Command, run_command
from tests.operations.clones import fresh_clone, postgres_of
from tests.repository_copies import run_app

INPUTS = """
await session.execute(text("CREATE TABLE pears (name text)"))
for name in ("Abate", "Conference"):
    await session.execute(text("INSERT INTO pears VALUES (:name)"), {"name": name})

raise_ = await session.execute(text("DELETE FROM pears")), 1 / 0
"pears:", await session.fetch_value(text("SELECT count(*) FROM pears"))
6 * 7
{"orm": await session.orm.get(users.User, uuid)}
from uuid import UUID
{"orm": await session.orm.get(users.User, UUID(int=0))}
items.create_item.__name__, items.ItemCreate.__name__, items.Item.__tablename__
database.read().fetch_value.__name__
"""


async def test_the_shell_awaits_and_commits_each_input(command: Command) -> None:
    """An input that fails is rolled back, and the next one works."""
    shell = await command("shell", stdin=INPUTS)
    assert shell.exit_code == 0, shell.output
    assert "ZeroDivisionError" in shell.output
    assert "NameError: name 'uuid' is not defined" in shell.output
    for printed in (
        "('pears:', 2)",
        "42",
        "{'orm': None}",
        "('create_item', 'ItemCreate', 'items')",
        "'fetch_value'",
    ):
        assert f">>> {printed}\n" in shell.output


async def test_the_shell_says_what_is_at_hand(command: Command) -> None:
    shell = await command("shell", stdin="")
    (line, _) = shell.output.split("\n", 1)
    names = ", ".join(feature.name for feature in find_features())
    assert line.startswith("database; session, ")
    assert line.endswith(names)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"APP_ENV": "test"}, "error: APP_ENV is test: only dev has a database to reset\n"),
        (
            {"APP_ENV": "dev", "APP_DATABASE_URL": "postgresql://localhost/shop"},
            "error: APP_DATABASE_URL is set: only the embedded database is reset\n",
        ),
    ],
)
def test_only_the_embedded_database_of_development_is_reset(
    variables: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # so that the developer's .env is not read
    refused = run_command("reset", **variables)
    assert (refused.exit_code, refused.stderr) == (1, message)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fresh_clone(tmp_path_factory.mktemp("clone")) as folder:
        yield folder


def psql(clone: Path, statement: str) -> str:
    done = run_app(clone, "psql", "-Atqc", statement, APP_ENV="dev")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.verify
def test_a_reset_leaves_the_demo_alone(clone: Path) -> None:
    assert run_app(clone, "reset", APP_ENV="dev").stderr == ""
    assert psql(clone, "SELECT email FROM users") == "demo@example.com"
    psql(clone, "UPDATE users SET email = 'changed@example.com'")
    assert psql(clone, "SELECT email FROM users") == "changed@example.com"
    done = run_app(clone, "reset", APP_ENV="dev")
    assert "migrated, with the demo" in done.stdout, done.stderr
    assert psql(clone, "SELECT email FROM users") == "demo@example.com"
    assert postgres_of(clone) == []


@pytest.mark.verify
def test_a_database_in_use_is_not_reset(clone: Path) -> None:
    with embedded_postgres(clone / ".data" / "postgres") as server:
        refused = run_app(clone, "reset", APP_ENV="dev")
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: a process uses the database in ")
        with embedded_postgres(clone / ".data" / "postgres") as same:
            assert same.port == server.port


@pytest.mark.verify
def test_psql_passes_on_its_status_and_shows_no_password(clone: Path) -> None:
    failed = run_app(clone, "psql", "-c", "SELECT nonsense", APP_ENV="dev")
    assert failed.returncode == 1
    assert 'column "nonsense" does not exist' in failed.stderr
    shown = run_app(clone, "psql", "-c", r"\! tr '\0' ' ' < /proc/$PPID/cmdline", APP_ENV="dev")
    assert " postgresql://postgres@127.0.0.1:" in shown.stdout
