"""The dashboards and the alerts use only existing metrics; each of ours is in one of them.

Those of a feature are in `features/<name>/deploy`, where the containers that read them look.
"""

import re
import shutil
from pathlib import Path

from httpx import AsyncClient
from prometheus_client import REGISTRY

from tests.app_helpers import parse_metrics
from tests.repository_copies import ROOT, run

DEPLOY = ROOT / "app" / "deploy"
OF_FEATURES = sorted(ROOT.glob("features/*/deploy/*"))
FILES = [DEPLOY / "dashboard.json", DEPLOY / "alerts.yaml", *OF_FEATURES]
SUFFIXES = ("", "_total", "_bucket", "_count", "_sum")


async def test_dashboards_and_alerts_use_existing_metrics(client: AsyncClient) -> None:
    await client.get("/healthz")
    shown = {name for name, _ in parse_metrics((await client.get("/metrics")).text)}
    declared = {f"{metric.name}{suffix}" for metric in REGISTRY.collect() for suffix in SUFFIXES}
    for file in FILES:
        asked = set(re.findall(r"\b(?:http|tessera|process)_[a-z_]+", file.read_text()))
        assert asked, file
        assert asked <= shown | declared, file


def test_each_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    text = "".join(file.read_text() for file in FILES)
    ours = {metric.name for metric in REGISTRY.collect() if metric.name.startswith("tessera_")}
    assert not {name for name in ours if name not in text}


def test_grafana_gets_the_dashboard_of_each_feature(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for path in ("app/deploy", "features/orders/deploy", "features/notes/tests"):
        (repository / path).mkdir(parents=True)
        (repository / path / "dashboard.json").write_text(path)
    assert gathered(repository, tmp_path / "first") == {"tessera.json", "orders.json"}
    shutil.rmtree(repository / "features/orders")
    assert gathered(repository, tmp_path / "second") == {"tessera.json"}


def gathered(repository: Path, folder: Path) -> set[str]:
    script = str(DEPLOY / "gather-dashboards.sh")
    done = run(ROOT, "sh", script, str(repository), str(folder))
    assert done.returncode == 0, done.stderr
    return {path.name for path in folder.iterdir()}


def test_prometheus_gets_the_alerts_of_each_feature() -> None:
    patterns = re.findall(r'"(/.*?)"', (DEPLOY / "prometheus.yaml").read_text())
    mounted = dict(re.findall(r'"\.(/.*?):(/.*?):ro"', (ROOT / "compose.yaml").read_text()))
    assert patterns == [f"{mounted['/features']}/*/deploy/alerts.yaml"]
    assert {path.name for path in OF_FEATURES} <= {"dashboard.json", "alerts.yaml"}
