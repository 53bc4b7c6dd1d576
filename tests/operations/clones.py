"""A fresh clone of the code, and the processes of its embedded PostgreSQL."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit import wait_until
from tests.serving import ROOT

CODE = ("app", "features", "migrations", "shared")
GONE_TIMEOUT_SECONDS = 60.0


@contextmanager
def fresh_clone(folder: Path) -> Iterator[Path]:
    """Copies the code to the folder, without any data, and removes its data in the end."""
    for name in CODE:
        ignored = shutil.ignore_patterns("__pycache__", "tests")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    yield folder
    system_folder = (folder / ".data" / "postgres" / "server").resolve()
    if system_folder.is_relative_to("/var/lib/tessera"):
        shutil.rmtree(system_folder)


def postgres_of(clone: Path) -> list[int]:
    """Returns the PostgreSQL processes that have the clone's database in their command line or as
    their working directory."""
    data = str((clone / ".data" / "postgres").resolve())
    system_folder = str((clone / ".data" / "postgres" / "server").resolve())
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            where = os.readlink(process / "cwd")
        except OSError:
            continue
        if "postgres" in command and (
            any(path in command for path in (data, system_folder))
            or where.startswith((data, system_folder))
        ):
            found.append(int(process.name))
    return found


def wait_until_gone(clone: Path) -> None:
    wait_until(lambda: not postgres_of(clone), "the end of PostgreSQL", GONE_TIMEOUT_SECONDS)
