"""The loop of development: the application starts again when a file is saved, on a PostgreSQL that
starts by itself."""

import asyncio
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from app.development import development_app, load_demo
from app.discovery import find_features, new_database
from features.users.accounts.tables import User
from shared.settings import Settings
from tests.kit import SECRET_KEY, free_port, wait_until, within
from tests.operations.clones import fresh_clone, postgres_of, wait_until_gone
from tests.serving import Served, serving_by

RELOAD_TIMEOUT_SECONDS = 60.0
COLOURS = re.compile(r"\x1b\[\d+m")
REVISION = """
revision = "items_9999"
down_revision = "{head}"

def upgrade() -> None: ...
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with fresh_clone(tmp_path_factory.mktemp("clone")) as folder:
        yield folder


@contextmanager
def developing(clone: Path, module: str, *arguments: str, **settings: str) -> Iterator[Served]:
    port = free_port()
    command = [module, *arguments, f"--port={port}"]
    with serving_by(command, clone, port, {"env": "dev", **settings}, code=clone) as served:
        yield served
        assert served.stop(signal.SIGINT) in {0, 130}
        wait_until_gone(clone)


def wait_for_line(served: Served, pattern: str) -> None:
    wait_until(
        lambda: re.search(pattern, COLOURS.sub("", served.log.read_text())),
        f"{pattern!r} in the log",
        RELOAD_TIMEOUT_SECONDS,
    )


def save_and_wait(clone: Path, served: Served, status: str) -> None:
    """Changes what /healthz answers, and waits until it does."""
    probe = clone / "app" / "ops" / "health.py"
    probe.write_text(re.sub(r'default="\w+"', f'default="{status}"', probe.read_text()))

    def answers() -> bool:
        try:
            answer = httpx.get(f"{served.address}/healthz", timeout=RELOAD_TIMEOUT_SECONDS)
        except httpx.TransportError:  # of the process that ends
            return False
        return bool(answer.json() == {"status": status})

    wait_until(answers, f"the answer {status!r}", RELOAD_TIMEOUT_SECONDS)


@pytest.mark.verify
def test_a_saved_file_is_served_by_the_same_postgresql(clone: Path) -> None:
    with developing(clone, "app", "serve", "--reload", log_sql="true") as served:
        assert served.address in served.output.read_text()
        save_and_wait(clone, served, "good")
        wait_for_line(served, "sql .* statement='SELECT .* FROM ")
        before = set(postgres_of(clone))
        for status in ("better", "best"):
            save_and_wait(clone, served, status)
        assert httpx.get(f"{served.address}/readyz", timeout=30).status_code == 200
        assert min(before) in postgres_of(clone), "another server"


@pytest.mark.verify
def test_a_file_that_cannot_be_imported_is_named_and_the_next_change_is_served(
    clone: Path,
) -> None:
    tables = clone / "features" / "items" / "tables.py"
    code = tables.read_text()
    with developing(clone, "app", "serve", "--reload") as served:
        tables.write_text(f"def (\n{code}")
        wait_for_line(
            served, "(?m)^error: features/items/tables.py:1: SyntaxError: invalid syntax$"
        )
        tables.write_text(code)
        save_and_wait(clone, served, "mended")
    assert "Traceback" not in served.log.read_text()


@pytest.mark.verify
def test_a_pending_migration_is_reported_and_not_applied(clone: Path) -> None:
    branch = clone / "migrations" / "items"
    (head,) = re.findall(r'^revision = "(\w+)"', max(branch.glob("0*.py")).read_text(), re.M)
    revision = branch / "9999_nothing.py"
    with developing(clone, "app", "serve", "--reload") as served:
        revision.write_text(REVISION.format(head=head))
        save_and_wait(clone, served, "behind")  # a new file alone changes nothing
        wait_for_line(served, "not_ready ")
        answer = httpx.get(f"{served.address}/readyz", timeout=30)
        assert answer.json()["detail"] == "The database lacks the migrations items_9999"
    revision.unlink()


@pytest.mark.verify
def test_a_killed_reloader_leaves_no_process(clone: Path) -> None:
    port = free_port()
    command = ["app", "serve", "--reload", f"--port={port}"]
    with serving_by(command, clone, port, {"env": "dev"}, code=clone) as served:
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until_gone(clone)

    def refuses() -> bool:
        try:
            httpx.get(f"{served.address}/healthz", timeout=30)
        except httpx.ConnectError:
            return True
        except httpx.TransportError:
            return False
        return False

    wait_until(refuses, "the end of the server", RELOAD_TIMEOUT_SECONDS)


@pytest.mark.verify
@pytest.mark.parametrize(
    "command",
    [["uvicorn", "app.asgi:app", "--reload", "--reload-dir=app"], ["fastapi", "dev"]],
    ids=["uvicorn", "fastapi"],
)
def test_other_commands_serve_on_the_embedded_postgresql(clone: Path, command: list[str]) -> None:
    if command[0] == "fastapi":
        pytest.importorskip("fastapi_cli")
    with developing(clone, *command) as served:
        assert httpx.get(f"{served.address}/readyz", timeout=30).status_code == 200
        assert postgres_of(clone), "the test sees no PostgreSQL"
        save_and_wait(clone, served, command[0])
        assert httpx.get(f"{served.address}/readyz", timeout=30).status_code == 200
        assert "served_without_bounds" not in served.log.read_text()


@pytest.mark.verify
def test_outside_development_another_server_is_warned_of(tmp_path: Path, database_url: str) -> None:
    port = free_port()
    command = ["uvicorn", "app.asgi:app", f"--port={port}"]
    settings = {"database_url": database_url, "secret_key": SECRET_KEY}
    with serving_by(command, tmp_path, port, settings) as served:
        assert "served_without_bounds" in served.log.read_text()


def test_a_debugger_may_hold_a_request_unless_a_timeout_is_set() -> None:
    assert development_app(Settings(env="dev")).state.settings.request_timeout is None
    chosen = Settings(env="dev", request_timeout=7)
    assert development_app(chosen).state.settings.request_timeout == 7


async def test_two_first_starts_at_once_add_one_demo(settings: Settings) -> None:
    features = find_features()
    async with within(60, "both demos"):
        await asyncio.gather(load_demo(settings, features), load_demo(settings, features))
    database = new_database(settings, features)
    assert await database.read().fetch_value(select(func.count()).select_from(User)) == 1
    await database.dispose()
