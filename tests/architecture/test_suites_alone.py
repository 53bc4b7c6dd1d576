"""Each feature's suite passes with only that feature and its dependencies loaded.

Runs in random order, on each kind of server, with and without the folders of the other features,
and with a `.env` and environment variables that would break a process that read them.
"""

import shutil
from pathlib import Path

import pytest

from app.discovery import find_features
from tests.kit.servers import docker_answers
from tests.repository_copies import BIN, ROOT, copy_repository, run_suite

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

FEATURES = [feature.name for feature in find_features()]
NO_DOCKER = {"DOCKER_HOST": "unix:///nowhere"}
POISON = ROOT / "tests" / "poisoned.env"


@pytest.mark.parametrize("others", ["beside the others", "without the others"])
@pytest.mark.parametrize("server", ["embedded PostgreSQL", "container"])
@pytest.mark.parametrize("feature", FEATURES)
def test_the_suite_of_a_feature_passes_alone(
    feature: str, server: str, others: str, tmp_path: Path
) -> None:
    if server == "container" and not docker_answers():
        pytest.skip("no Docker daemon answers")
    copy_repository(tmp_path)
    if others == "without the others":
        remove_all_but(feature, tmp_path)
    shutil.copy(POISON, tmp_path / ".env")
    poison = dict(line.split("=", 1) for line in POISON.read_text().splitlines()[1:])
    variables = poison | (NO_DOCKER if server == "embedded PostgreSQL" else {})
    test = ("-m", "pytest", "-q", f"features/{feature}", f"--feature={feature}")
    done = run_suite(tmp_path, str(BIN / "python"), *test, **variables)
    assert done.returncode == 0, done.stdout + done.stderr


def remove_all_but(feature: str, code: Path) -> None:
    """Deletes all features except this one and its dependencies."""
    kept = {needed.name for needed in find_features(feature)}
    for other in set(FEATURES) - kept:
        shutil.rmtree(code / "features" / other)
        shutil.rmtree(code / "migrations" / other, ignore_errors=True)
