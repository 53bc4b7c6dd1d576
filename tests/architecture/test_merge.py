"""Two teams that each add a feature and a migration on their branch can merge both."""

import json
from pathlib import Path

import pytest

from tests.kit import Server
from tests.repository_copies import BIN, copy_repository, run, run_app, run_suite

pytestmark = pytest.mark.verify

IDENTITY = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
TEAMS = ("orders", "invoices")


def git(folder: Path, *arguments: str) -> str:
    done = run(folder, "git", *IDENTITY, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A repository in which two branches each added a feature, and both are merged."""
    copy_repository(tmp_path)
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=What there is")
    for team in TEAMS:
        git(tmp_path, "switch", "--quiet", "--create", team, "main")
        assert run_app(tmp_path, "new-feature", team).returncode == 0
        git(tmp_path, "add", "--all")
        git(tmp_path, "commit", "--quiet", f"--message=Add {team}")
    git(tmp_path, "switch", "--quiet", "main")
    for team in TEAMS:
        git(tmp_path, "merge", "--quiet", "--no-ff", "--message=Merge", team)
    return tmp_path


@pytest.mark.timeout(900)
def test_two_features_merge_without_conflict(merged: Path, server: Server) -> None:
    assert git(merged, "status", "--porcelain") == ""
    changed = git(merged, "diff", "--name-only", "HEAD^1^1", "HEAD").split()
    assert {tuple(path.split("/")[:2]) for path in changed} == {
        (folder, team) for folder in ("features", "migrations") for team in TEAMS
    }
    document = json.loads(run_app(merged, "openapi").stdout)
    assert {"/orders", "/invoices"} <= document["paths"].keys()
    lint = run(merged, str(BIN / "lint-imports"))
    assert lint.returncode == 0, lint.stdout
    suites = [*(f"features/{team}" for team in TEAMS), "tests/architecture", "tests/contract"]
    test = (str(BIN / "python"), "-m", "pytest", "-q", "-n2", *suites)
    done = run_suite(merged, *test, database=server.admin_url)
    assert done.returncode == 0, done.stdout + done.stderr
