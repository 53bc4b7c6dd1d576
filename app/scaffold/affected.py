"""Finds the features that a change can affect: those it changes, and all that depend on them.

The tests that check every feature run after any change, prose included: see the Makefile.
"""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from shared.feature import Feature, FeatureError

ROOT = Path(__file__).resolve().parents[2]
PROSE = {".md", ".txt"}


def changed_files(base: str) -> list[str]:
    """Returns the files that differ from the merge base with `base`, untracked files included.

    Raises:
        FeatureError: git does not know `base`.
    """
    merge_base = run_git("merge-base", base, "HEAD")[0]
    return run_git("diff", "--name-only", "--no-renames", merge_base) + run_git(
        "ls-files", "--others", "--exclude-standard"
    )


def affected_by(files: Iterable[str], features: Sequence[Feature]) -> list[str] | None:
    """Returns the features whose suites must run, dependencies first; None means all suites."""
    names = {feature.name for feature in features}
    affected = set()
    for path in map(PurePosixPath, files):
        if path.suffix in PROSE:
            continue
        if len(path.parts) < 3 or path.parts[0] not in {"features", "migrations"}:
            return None
        if path.parts[1] not in names:  # the kernel's own migrations, or a removed feature
            return None
        affected.add(path.parts[1])
    for feature in features:  # dependencies come first, so one pass finds all dependents
        if affected & set(feature.depends_on):
            affected.add(feature.name)
    return [feature.name for feature in features if feature.name in affected]


def run_git(*arguments: str) -> list[str]:
    """Returns the lines that git prints.

    Raises:
        FeatureError: git fails.
    """
    done = subprocess.run(  # noqa: S603
        ["git", *arguments],  # noqa: S607  # git of the PATH
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FeatureError(f"git: {done.stderr.strip().splitlines()[0]}")
    return done.stdout.splitlines()
