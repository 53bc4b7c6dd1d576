"""A rollout: the old code works on the new schema, and the new code waits for the migration."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copytree

import httpx
import pytest

from app import migrations
from app.main import create_app
from app.migrations import upgrade
from app.scaffold.generating import plan_feature
from shared.settings import Settings
from tests.kit import PASSWORD, free_port
from tests.repository_copies import copy_repository
from tests.serving import serving

pytestmark = pytest.mark.verify

COLUMNS = """    description: str | None = None
    colour: str | None = None
    size: int = Field(default=1, sa_column_kwargs={"server_default": "1"})
"""
REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "orders_0002", "orders_0001"
branch_labels = depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("orders", sa.Column("colour", sa.String(), nullable=True))
    op.add_column("orders", sa.Column("size", sa.Integer(), server_default="1", nullable=False))
"""


@pytest.fixture
def old(tmp_path: Path, settings: Settings) -> Path:
    """A copy of the repository with a new feature."""
    code = tmp_path / "old"
    copy_repository(code)
    for path, text in plan_feature(create_app(settings), "orders").items():
        (code / path).parent.mkdir(parents=True, exist_ok=True)
        (code / path).write_text(text)
    return code


@pytest.fixture
def new(tmp_path: Path, old: Path) -> Path:
    """A copy of the old code with two more columns."""
    code = tmp_path / "new"
    copytree(old, code)
    tables = code / "features/orders/tables.py"
    tables.write_text(tables.read_text().replace("    description: str | None = None\n", COLUMNS))
    (code / "migrations/orders/0002_add_colour_and_size.py").write_text(REVISION)
    return code


def sign_in(client: httpx.Client) -> None:
    account = {"email": "ada@example.com", "password": PASSWORD}
    assert client.post("/users", json=account).status_code == 201
    form = {"grant_type": "password", "username": account["email"], "password": PASSWORD}
    token = client.post("/auth/token", data=form).json()["access_token"]
    client.headers["Authorization"] = f"Bearer {token}"


def use(client: httpx.Client) -> Iterator[int]:
    """Creates, changes, reads and lists an order, and yields the statuses."""
    created = client.post("/orders", json={"title": "Old"})
    yield created.status_code
    order = created.headers.get("location", "")
    yield client.patch(order, json={"title": "New"}).status_code
    for path in (order, "/orders", "/orders?sort=-title"):
        yield client.get(path).status_code


@contextmanager
def in_use(client: httpx.Client) -> Iterator[Counter[int]]:
    """Sends requests in a loop during the block, and once more after it."""
    statuses: Counter[int] = Counter()
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            statuses.update(use(client))

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield statuses
    finally:
        done.set()
        thread.join(60)
        assert not thread.is_alive(), "the client's last answer did not come within 60 s"
    statuses.update(use(client))


@pytest.mark.timeout(300)
def test_the_old_code_serves_on_the_new_schema(
    old: Path, new: Path, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def migrate(code: Path) -> None:
        monkeypatch.setattr(migrations, "ROOT", code / "migrations")
        upgrade(database_url)

    settings = {
        "env": "test",
        "database_url": database_url,
        "secret_key": "a secret for tests, 32 bytes or more",
    }
    with ExitStack() as stack:

        def served(code: Path) -> httpx.Client:
            (folder := tmp_path / f"output of {code.name}").mkdir()
            server = stack.enter_context(serving(folder, free_port(), settings, code))
            return stack.enter_context(httpx.Client(base_url=server.address, timeout=30))

        migrate(old)
        before, after = served(old), served(new)
        waits = after.get("/readyz")
        assert waits.status_code == 503
        assert "orders_0002" in waits.json()["detail"]
        sign_in(before)
        with in_use(before) as statuses:
            migrate(new)
        assert statuses.keys() == {200, 201}, statuses
        assert [client.get("/readyz").status_code for client in (before, after)] == [200, 200]
        after.headers["Authorization"] = before.headers["Authorization"]
        assert set(use(after)) == {200, 201}
        assert after.get("/orders?limit=1").json()["total"] == 1 + statuses[201]
        assert set(use(before)) == {200, 201}
