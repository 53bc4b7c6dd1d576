"""The suite of each feature passes on a cluster: users, items and search answer there as on one
server."""

import pytest

from app.discovery import find_features
from tests.kit.citus import Cluster
from tests.repository_copies import BIN, ROOT, run_suite

pytestmark = [pytest.mark.verify, pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("feature", [feature.name for feature in find_features()])
def test_the_suite_of_a_feature_passes_on_a_cluster(feature: str, cluster: Cluster) -> None:
    suite = ("-m", "pytest", "-q", "-n2", "--citus", f"features/{feature}")
    done = run_suite(ROOT, str(BIN / "python"), *suite)
    assert done.returncode == 0, done.stdout + done.stderr
