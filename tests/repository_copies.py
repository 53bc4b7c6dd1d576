"""Copies the repository, so that a test can change the copy and run it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
NOT_COPIED = shutil.ignore_patterns(
    *(".*_cache", ".data", ".env", ".git", ".hypothesis", ".venv", "__pycache__", "bench-results")
)


def copy_repository(target: Path, *caches: str) -> None:
    """Copies the repository without local files and caches, except for the named caches."""
    shutil.copytree(ROOT, target, ignore=NOT_COPIED, dirs_exist_ok=True)
    for cache in caches:
        if (ROOT / cache).exists():
            shutil.copytree(ROOT / cache, target / cache)


def last_revision(root: Path, feature: str) -> str:
    """Returns the id of the newest revision of a feature, such as `items_0002`."""
    newest = max((root / "migrations" / feature).glob("0*.py"))
    return f"{feature}_{newest.name[:4]}"


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Writes the files of an example feature into a copy, without their indentation."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text).lstrip())


def run(
    folder: Path, *command: str, database: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a copy, with only these settings and with this database.

    Raises:
        TimeoutExpired: it did not end within 100 s.
    """
    return _run(folder, command, database, variables, seconds=100)


def run_suite(
    folder: Path, *command: str, database: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command that may take minutes, such as all the tests of a copy.

    Raises:
        TimeoutExpired: it did not end within 840 s.
    """
    return _run(folder, command, database, variables, seconds=840)


def _run(
    folder: Path,
    command: Sequence[str],
    database: str,
    variables: Mapping[str, str],
    *,
    seconds: float,
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name[:4] != "APP_"}
    environment["APP_ENV"] = "test"
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start compiles all modules
    for inherited in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "args"):  # of the outer make
        environment.pop(inherited, None)
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    if database:
        environment |= {"APP_TEST_DATABASE_URL": database, "APP_DATABASE_URL": database}
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def run_app(
    folder: Path, *arguments: str, database: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m app …` in a copy."""
    return run(folder, sys.executable, "-m", "app", *arguments, database=database, **variables)


def pytest_in(folder: Path, database: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs tests of a copy in one process."""
    command = (str(BIN / "python"), "-m", "pytest", "-q", "-n0", *arguments)
    return run_suite(folder, *command, database=database)


def make(folder: Path, *arguments: str, database: str) -> None:
    """Runs a Makefile target without its `setup` prerequisite; fails unless it succeeds."""
    done = run_suite(
        folder, "make", "--old-file=setup", f"BIN={BIN}", *arguments, database=database
    )
    assert done.returncode == 0, done.stdout + done.stderr
