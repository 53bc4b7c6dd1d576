"""Any feature that no other feature depends on can be deleted, and the rest still works."""

import asyncio
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from app import removal
from app.discovery import find_features
from app.migrations import has_revisions, load_revisions
from shared.db.tables import table_owners
from tests.kit import PASSWORD, Command, Server, free_port
from tests.kit.servers import execute
from tests.repository_copies import BIN, NOT_COPIED, ROOT, copy_repository, make, run, run_app
from tests.serving import serving

FEATURES = [feature.name for feature in find_features()]
NEEDED = {other for feature in find_features() for other in feature.depends_on}
LEAVES = [name for name in FEATURES if name not in NEEDED]
REMOVABLE = [name for name in LEAVES if name not in {"users", "items"}]
"""The features without which the whole suite passes: it uses accounts and items throughout."""

WITH_TABLES = [name for name in REMOVABLE if has_revisions(name)]
SCAFFOLDED = "orders"
SECRET_KEY = "a secret for tests, 32 bytes or more"

IMPORT_ALL_OF_SHARED = """
import importlib, pkgutil, sys, shared
for module in pkgutil.walk_packages(shared.__path__, "shared."):
    importlib.import_module(module.name)
print(*sorted(name for name in sys.modules if name.startswith("features.")))
"""


def test_the_kernel_knows_no_feature() -> None:
    done = run(ROOT, sys.executable, "-c", IMPORT_ALL_OF_SHARED)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_has_tests_and_a_branch_for_its_tables(feature: str) -> None:
    assert list((ROOT / "features" / feature).glob("tests/test_*.py")), f"{feature} has no tests"
    labels = {
        label for script in load_revisions().walk_revisions() for label in script.branch_labels
    }
    has_tables = feature in table_owners().values()
    assert has_revisions(feature) == has_tables, (
        f"{feature} has tables and no migrations/{feature}, or the other way about"
    )
    assert (feature in labels) == has_tables, f"migrations/{feature} is no branch"


@pytest.fixture
def url(empty_database: str) -> str:
    return empty_database


@pytest.mark.parametrize("feature", [name for name in LEAVES if has_revisions(name)])
async def test_the_tables_of_a_feature_are_dropped_by_a_command(
    feature: str, command: Command, database_url: str
) -> None:
    own = {table for table, owner in table_owners().items() if owner == feature}
    assert own <= await _tables(database_url)
    for said in (f"dropped the tables of {feature}\n", f"the database has nothing of {feature}\n"):
        assert (await command("drop-feature", feature)).stdout.endswith(said)
        assert not own & await _tables(database_url)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps a `remove-feature` that should have been refused away from this repository."""
    monkeypatch.setattr(removal, "ROOT", tmp_path)
    monkeypatch.setattr(removal, "write_parts", None)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("needed", sorted(NEEDED))
async def test_the_tables_of_a_feature_that_is_needed_stay(
    needed: str, command: Command, database_url: str
) -> None:
    before = await _tables(database_url)
    for verb in ("drop-feature", "remove-feature"):
        refused = await command(verb, needed)
        assert refused.exit_code == 1
        assert f"error: {needed!r} is needed: " in refused.output
    assert await _tables(database_url) == before


async def test_the_tables_of_newer_code_stay(command: Command, database_url: str) -> None:
    feature = LEAVES[0]
    await execute(database_url, f"INSERT INTO alembic_version VALUES ('{feature}_9999')")
    refused = await command("drop-feature", feature)
    assert refused.exit_code == 1
    assert f"error: the database has {feature}_9999, which this code does not" in refused.output


@pytest.mark.usefixtures("elsewhere")
async def test_no_code_is_deleted_in_production(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # so that the developer's .env is not read
    monkeypatch.setenv("APP_ENV", "prod")
    monkeypatch.setenv("APP_PUBLIC_URL", "https://tessera.example.com")
    refused = await command("remove-feature", LEAVES[0])
    assert refused.exit_code == 1
    assert "error: this deletes code; in production run `drop-feature`" in refused.output


@pytest.mark.verify
@pytest.mark.timeout(900)
@pytest.mark.parametrize("feature", REMOVABLE)
def test_the_suite_passes_without_a_feature(feature: str, server: Server, tmp_path: Path) -> None:
    code = copy_without(feature, ROOT, tmp_path / "code")
    for target in ("check", "test"):
        make(code, target, database=server.admin_url)


@pytest.mark.verify
@pytest.mark.timeout(900)
@pytest.mark.parametrize("feature", [*WITH_TABLES, SCAFFOLDED])
def test_code_without_a_feature_serves_on_a_database_with_rows_of_it(
    feature: str, url: str, tmp_path: Path
) -> None:
    """As in production: the release without it is deployed, then its tables are dropped."""
    old = copy_with(feature, tmp_path / "old")
    assert run_app(old, "migrate", database=url).returncode == 0
    with served(old, url, tmp_path) as client:
        item = fill(client, feature)
    tables = tables_of(url)
    new = copy_without(feature, old, tmp_path / "new")

    for command in ("migrate", "doctor"):
        done = run_app(new, command, database=url)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"is of {feature}, which this code does not have" in done.stdout + done.stderr
    with served(new, url, tmp_path) as client:
        (unknown,) = client.get("/readyz").raise_for_status().json()["unknown_migrations"]
        assert unknown.startswith(f"{feature}_")
        assert (tmp_path / "log").read_text().count("unknown_migration") == 1
        sign_in(client)
        use(client, item)
        dropped = run_app(old, "drop-feature", feature, database=url)
        assert f"dropped the tables of {feature}" in dropped.stdout, dropped.stderr
        assert client.get("/readyz").raise_for_status().json() == {"status": "ok"}
    assert tables - tables_of(url)
    assert not [name for name in tables_of(url) if name.startswith(feature)]
    for code in (old, new):  # and it may come back
        assert run_app(code, "migrate", database=url).returncode == 0


@pytest.mark.verify
@pytest.mark.timeout(300)
@pytest.mark.parametrize("feature", [*WITH_TABLES, SCAFFOLDED])
def test_a_feature_is_removed_with_its_tables(feature: str, url: str, tmp_path: Path) -> None:
    code = copy_with(feature, tmp_path / "code")
    expected = files(copy_without(feature, code, tmp_path / "expected"))
    git(code, "init", "--quiet")
    git(code, "add", "--all", ":!features/orders", ":!migrations/orders")  # not committed yet
    git(code, "-c", "user.name=A", "-c", "user.email=a@b", "commit", "--quiet", "--message=x")
    assert run_app(code, "migrate", database=url).returncode == 0
    with served(code, url, tmp_path) as client:
        fill(client, feature)

    for needed in NEEDED:
        refused = run_app(code, "remove-feature", needed, database=url)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"error: {needed!r} is needed: "), refused.stderr
    done = run(code, "make", "--old-file=setup", f"BIN={BIN}", "remove", f"feature={feature}",
        database=url)  # fmt: skip

    assert done.returncode == 0, done.stderr
    was_released = feature != SCAFFOLDED
    assert (f"python -m app drop-feature {feature}" in done.stdout) == was_released
    assert files(code).keys() == expected.keys()
    assert files(code) == expected
    assert not [name for name in tables_of(url) if name.startswith(feature)]
    assert run_app(code, "migrate", database=url).returncode == 0
    if not was_released:
        assert "moved what was not committed to `git stash`" in done.stdout
        git(code, "stash", "pop")
        assert (code / "features/orders/router.py").exists()


def copy_with(feature: str, folder: Path) -> Path:
    """Returns a copy of the repository with this feature, scaffolded if it does not exist."""
    copy_repository(folder)
    if not (folder / "features" / feature).exists():
        made = run_app(folder, "new-feature", feature)
        assert made.returncode == 0, made.stderr
    return folder


def copy_without(feature: str, code: Path, folder: Path) -> Path:
    shutil.copytree(code, folder, ignore=NOT_COPIED)
    shutil.rmtree(folder / "features" / feature)
    shutil.rmtree(folder / "migrations" / feature, ignore_errors=True)  # not every feature has one
    return folder


@contextmanager
def served(code: Path, url: str, folder: Path) -> Iterator[httpx.Client]:
    settings = {"env": "test", "database_url": url, "secret_key": SECRET_KEY}
    with (
        serving(folder, free_port(), settings, code) as server,
        httpx.Client(base_url=server.address, timeout=30) as client,
    ):
        yield client


def sign_in(client: httpx.Client) -> None:
    form = {"grant_type": "password", "username": "ada@example.com", "password": PASSWORD}
    token = client.post("/auth/token", data=form).raise_for_status().json()["access_token"]
    client.headers["Authorization"] = f"Bearer {token}"


def fill(client: httpx.Client, feature: str) -> str:
    """Makes rows, some of them of the feature; returns the path of an item."""
    account = {"email": "ada@example.com", "password": PASSWORD}
    client.post("/users", json=account).raise_for_status()
    sign_in(client)
    key = {"name": "robot", "scopes": [f"{feature}:read", "items:read"]}
    client.post("/users/me/api-keys", json=key).raise_for_status()
    item = client.post("/items", json={"title": "Mug", "price": 1}).raise_for_status()
    if feature == SCAFFOLDED:
        client.post("/orders", json={"title": "Mine"}).raise_for_status()
    return item.headers["location"]


def use(client: httpx.Client, item: str) -> None:
    """Changes and deletes rows from when the code had the feature."""
    assert client.get("/users/me/api-keys").raise_for_status().json()["items"]
    client.patch(item, json={"title": "Cup"}).raise_for_status()
    client.get("/items").raise_for_status()
    client.delete(item).raise_for_status()
    client.post("/items", json={"title": "Pot", "price": 1}).raise_for_status()
    client.delete("/users/me").raise_for_status()


def tables_of(url: str) -> set[str]:
    return asyncio.run(_tables(url))


async def _tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        found = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        )
    finally:
        await connection.close()
    return {row["relname"] for row in found}


def files(folder: Path) -> dict[str, bytes]:
    """Returns the files of a copy of the repository by name, without those that are ignored."""
    with_caches = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in with_caches.items()
        if not {"__pycache__", ".git", ".data", ".ruff_cache"} & set(name.parts)
    }


def git(folder: Path, *arguments: str) -> None:
    done = run(folder, "git", *arguments)
    assert done.returncode == 0, done.stderr
