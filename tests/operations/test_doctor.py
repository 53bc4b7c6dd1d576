"""`python -m app doctor` lists the slices and reports problems."""

import re
import shutil
from pathlib import Path

import pytest

from tests.kit import Server
from tests.repository_copies import ROOT, copy_repository, last_revision, run_app

pytestmark = pytest.mark.verify

NOWHERE = "postgresql://postgres@127.0.0.1:1/nothing"


def doctor(folder: Path, database: str, code: Path = ROOT, **variables: str) -> tuple[str, int]:
    """Runs `doctor` on the code with this database, without a `.env`; returns its output and exit
    status."""
    done = run_app(folder, "doctor", database=database, PYTHONPATH=str(code), **variables)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout, done.returncode


def test_a_working_installation_is_shown(database_url: str, tmp_path: Path) -> None:
    said, status = doctor(tmp_path, database_url, COLUMNS="80")
    assert status == 0, said
    assert "wrong" not in said
    assert "ok    trusted proxies: none; behind a proxy that APP_TRUSTED_PROXIES does not" in said
    for shown in ("items", "users", "/items/{item_id}  GET", last_revision(ROOT, "items")):
        assert shown in said


def test_the_extensions_of_each_feature_are_checked(database_url: str, tmp_path: Path) -> None:
    copy_repository(tmp_path)
    (tmp_path / "features/probes").mkdir()
    (tmp_path / "features/probes/__init__.py").touch()
    (tmp_path / "features/probes/feature.py").write_text(
        "from shared.feature import Feature\n"
        "extensions = {'plpgsql': 'SELECT nothing()', 'nowhere': 'SELECT 1'}\n"
        "feature = Feature(name='probes', extensions=extensions)\n"
    )
    said, status = doctor(tmp_path, database_url, tmp_path)
    assert status == 1
    assert re.search(r"wrong extension plpgsql: fails: .*function nothing\(\) does not exist", said)
    assert "wrong extension nowhere: not installed in the database; CREATE EXTENSION" in said


def test_a_database_that_is_behind_is_named(server: Server, tmp_path: Path) -> None:
    said, status = doctor(tmp_path, server.admin_url)
    assert status == 1
    assert "wrong migrations: pending: " in said


def test_a_service_that_does_not_answer_is_named(tmp_path: Path) -> None:
    said, status = doctor(tmp_path, NOWHERE, APP_REDIS_URL="redis://127.0.0.1:1")
    assert status == 1
    assert "wrong database: cannot be reached: " in said
    assert "wrong Redis: does not answer" in said


def test_the_primary_and_the_replica_are_both_checked(database_url: str, tmp_path: Path) -> None:
    said, status = doctor(tmp_path, NOWHERE, APP_DATABASE_REPLICA_URL=database_url)
    assert status == 1
    assert "wrong database: cannot be reached: " in said
    assert "wrong database of the replica: cannot be reached: no host has the role standby" in said
    said, status = doctor(tmp_path, database_url, APP_DATABASE_REPLICA_URL=NOWHERE)
    assert status == 1
    assert "ok    database: PostgreSQL" in said
    assert "wrong database of the replica: cannot be reached: " in said


def test_branches_that_fork_or_are_missing_are_named(database_url: str, tmp_path: Path) -> None:
    copy_repository(tmp_path)
    assert run_app(tmp_path, "new-feature", "orders").returncode == 0
    shutil.rmtree(tmp_path / "migrations/orders")
    head = last_revision(tmp_path, "items")
    for fork in ("left", "right"):
        (tmp_path / f"migrations/items/9999_{fork}.py").write_text(
            f"revision, down_revision = 'items_{fork}', '{head}'\n"
            "branch_labels = depends_on = None\n"
        )
    said, status = doctor(tmp_path, database_url, tmp_path)
    assert status == 1
    assert "wrong migrations of items: 2 heads, items_left, items_right" in said
    assert "wrong migrations of orders: none" in said
