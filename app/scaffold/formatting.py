import subprocess
import sys
from collections.abc import Collection
from pathlib import Path


def format_code(files: Collection[Path]) -> None:
    """Sorts the imports of the files of Python, removes unused ones, and formats the code as `make
    check` requires."""
    python = [str(each) for each in files if each.suffix == ".py"]
    for arguments in (["check", "--fix-only", "--select=I,F401"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *arguments, "--quiet", *python]
        subprocess.run(ruff, check=True)  # noqa: S603  # our own tool and files
