"""The dashboard and the alerts use only existing metrics; each of ours is in one of them."""

import re

from httpx import AsyncClient
from prometheus_client import REGISTRY

from tests.app_helpers import parse_metrics
from tests.repository_copies import ROOT

OBSERVABILITY = ROOT / "app" / "deploy"
SUFFIXES = ("", "_total", "_bucket", "_count", "_sum")


async def test_dashboard_and_alerts_use_existing_metrics(client: AsyncClient) -> None:
    await client.get("/healthz")
    shown = {name for name, _ in parse_metrics((await client.get("/metrics")).text)}
    declared = {f"{metric.name}{suffix}" for metric in REGISTRY.collect() for suffix in SUFFIXES}
    for file in ("dashboard.json", "alerts.yaml"):
        asked = set(
            re.findall(r"\b(?:http|tessera|process)_[a-z_]+", (OBSERVABILITY / file).read_text())
        )
        assert asked
        assert asked <= shown | declared, file


def test_each_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    files = [OBSERVABILITY / file for file in ("dashboard.json", "alerts.yaml")]
    text = "".join(file.read_text() for file in files)
    ours = {metric.name for metric in REGISTRY.collect() if metric.name.startswith("tessera_")}
    assert not {name for name in ours if name not in text}
